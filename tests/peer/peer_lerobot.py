"""LeRobot itself is the judge: it opens what Ratchet converts and exports, row by row, frame by frame.

Not part of `make test` (the name does not begin with test_): it needs LeRobot in an environment of its own,
see docs/lerobot.md.

    .venv/bin/python -m pytest tests/peer/peer_lerobot.py --lerobot PYTHON -s
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from episodes.arrays import load_frames
from episodes.lerobot.convert import ConvertOptions, convert_v30
from episodes.lerobot.encode import VideoFormat
from episodes.lerobot.exporter import ExportOptions, export_lerobot
from episodes.lerobot.importer import import_lerobot
from episodes.lerobot.layout import Dataset
from episodes.lerobot.plan import Limits
from episodes.lerobot.tables import to_numbers
from episodes.reader import Episode
from episodes.spec import CameraSpec, EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import WriterConfig

V21 = Path(__file__).parents[3] / "shared" / "fixtures" / "cr5_pick_v21"
READS = Path(__file__).with_name("lerobot_reads.py")
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(not V21.is_dir(), reason=f"no set in {V21}")]


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> str:
    """The interpreter that has LeRobot."""
    python = request.config.getoption("--lerobot")
    if not python:
        pytest.skip("say --lerobot PYTHON")
    return str(python)


def _run(peer: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([peer, *map(str, arguments)], capture_output=True, text=True, env=environment)


def _judge(peer: str, what: str, root: Path, episodes: list[dict[str, Any]], tolerance: int = 2) -> None:
    reference = root.with_name(f"{root.name}.json")
    reference.write_text(json.dumps({"tolerance": tolerance, "episodes": episodes}))
    done = _run(peer, READS, root, reference)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    print(f"\n{what}: {_in_words(json.loads(done.stdout))}")


def _in_words(found: dict[str, Any]) -> str:
    return (
        f"{found['episodes']} episodes, {found['rows']} rows, {found['frames']} frames, "
        f"{found['frames_equal_to_the_bit']} equal to the bit, {found['differing']} differing "
        f"(lerobot {found['lerobot']}, torch {found['torch']}, torchcodec {found['torchcodec']})"
    )


def _of_source(indices: Sequence[int]) -> list[dict[str, Any]]:
    """What the source set says, its videos as they are."""
    dataset = Dataset(V21)
    out = []
    for number, index in enumerate(indices):
        episode = dataset.episodes[index]
        table = dataset.table(episode)
        numbers = {
            key: to_numbers(table[key], feature).tolist()
            for key, feature in dataset.features.items()
            if not feature.is_picture
        }
        numbers["timestamp"] = (np.arange(episode.length) / dataset.fps).astype(np.float32).tolist()
        captured = np.round(np.asarray(table["timestamp"].to_numpy(), np.float64) * 1e9)
        numbers["capture_time_ns"] = captured.astype(np.int64).tolist()
        numbers["frame_index"] = list(range(episode.length))
        numbers["episode_index"] = [number] * episode.length
        pictures = {key: str(span.path) for key, span in episode.videos.items()}
        out.append(
            {"episode": number, "task": dataset.tasks[0], "length": episode.length, "numbers": numbers,
             "pictures": pictures}
        )  # fmt: skip
    return out


def _of_store(episode: Episode, number: int, pictures: dict[str, str]) -> dict[str, Any]:
    """What a recorded episode says."""
    numbers = {name: stream.values.tolist() for name, stream in episode.streams.items()}
    clock = episode.streams["action"]
    numbers["capture_time_ns"] = (clock.t_ns - clock.t_ns[0]).tolist()
    numbers["capture_seq"] = clock.seq.tolist()
    numbers["next.success"] = [False] * (len(clock) - 1) + [episode.meta.outcome == "success"]
    for column, spans in (("flagged", episode.flags), ("is_intervention", episode.interventions)):
        numbers[column] = [any(s.start_ns <= t <= s.end_ns for s in spans) for t in clock.t_ns.tolist()]
    return {
        "episode": number, "task": episode.meta.task, "length": len(clock), "numbers": numbers,
        "pictures": pictures,
    }  # fmt: skip


def test_a_converted_set(peer: str, tmp_path: Path) -> None:
    """All 20 episodes, several files, against the source's own videos."""
    convert_v30(V21, tmp_path / "set", ConvertOptions(limits=Limits(1, 12)))
    _judge(peer, "converted", tmp_path / "set", _of_source(range(20)))


def test_a_set_that_was_added_to(peer: str, tmp_path: Path) -> None:
    convert_v30(V21, tmp_path / "set", ConvertOptions(episodes=(5, 12)))
    convert_v30(V21, tmp_path / "set", ConvertOptions(episodes=(18, 5, 0)))
    _judge(peer, "converted, then added to", tmp_path / "set", _of_source([5, 12, 18, 0]))


def test_a_set_added_to_that_lerobot_converted(peer: str, tmp_path: Path) -> None:
    shutil.copytree(V21.with_name("cr5_pick_v30"), tmp_path / "set", copy_function=shutil.copyfile)
    convert_v30(V21, tmp_path / "set", ConvertOptions(episodes=(5,)))
    want = _of_source([*range(20), 5])
    for episode in want:
        del episode["numbers"]["capture_time_ns"]
    _judge(peer, "LeRobot's conversion, then added to", tmp_path / "set", want)


def _with_flags(store: EpisodeStore) -> str:
    """Episode 18 again as if it had been recorded here: with flags and a take-over."""
    imported = import_lerobot(V21, store, episodes=[18], image_size=(240, 320)).imported[18]
    old = store.read(imported)
    spec = EpisodeSpec(
        task=old.meta.task, fps=old.meta.fps, kind="import", provenance=old.meta.provenance,
        streams=tuple(
            StreamSpec(name=n, dtype=s.dtype, shape=s.shape, unit=s.unit, names=s.names)
            for n, s in old.meta.streams.items()
        ),
        cameras=tuple(
            CameraSpec(name=n, height=c.height, width=c.width) for n, c in old.meta.cameras.items()
        ),
    )  # fmt: skip
    writer = store.begin(spec, started_ns=0, config=WriterConfig(wait_when_full=True))
    for name, stream in old.streams.items():
        for row in range(len(stream)):
            writer.append(name, int(stream.t_ns[row]), int(stream.seq[row]), stream.values[row])
    frames = old.frames("top")
    for row in range(len(frames)):
        writer.append_jpeg("top", int(frames.t_ns[row]), int(frames.seq[row]), frames.jpeg(row))
    times = old.streams["action"].t_ns
    writer.flag("stuck", int(times[20]), int(times[31]), 2.5, {"joint": "a"})
    writer.flag("slow", int(times[60]), int(times[60]), 1.0)
    writer.intervention(int(times[40]), int(times[55]), "leader arm")
    return writer.end("failure", "dropped it").wait().id


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_an_exported_store(peer: str, tmp_path: Path, codec: Any) -> None:
    """v3.0 straight; v2.1 through LeRobot's own converter; frames against the exported videos."""
    with EpisodeStore.open(tmp_path / "store") as store:
        chosen = import_lerobot(V21, store, episodes=[5, 12], image_size=(240, 320), outcome="success")
        ids = [*chosen.imported.values(), _with_flags(store)]
        for to in ("v2.1", "v3.0"):
            export_lerobot(store, ids, tmp_path / to, ExportOptions(to=to, video=VideoFormat(codec)))
        key = "observation.images.top"
        videos = [tmp_path / f"v2.1/videos/chunk-000/{key}/episode_{i:06d}.mp4" for i in range(3)]
        kept = [shutil.copy(v, tmp_path / f"{i}.mp4") for i, v in enumerate(videos)]
        want = [_of_store(store.read(e), i, {key: str(kept[i])}) for i, e in enumerate(ids)]
    _judge(peer, f"exported as v3.0 ({codec})", tmp_path / "v3.0", want)
    convert = "lerobot.datasets.v30.convert_dataset_v21_to_v30"
    done = _run(peer, "-m", convert, "--repo-id", "v2.1", "--root", tmp_path, "--push-to-hub", "false")
    assert done.returncode == 0, done.stderr[-2000:]
    _judge(peer, f"exported as v2.1 ({codec}), LeRobot's converter", tmp_path / "v2.1", want)


def test_exported_pictures_are_the_stored_jpegs(peer: str, tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "store") as store:
        ids = list(import_lerobot(V21, store, episodes=[18], image_size=(120, 160)).imported.values())
        export_lerobot(store, ids, tmp_path / "set", ExportOptions(pictures="image"))
        np.save(tmp_path / "frames.npy", load_frames(store.read(ids[0]), "top"))
        want = [_of_store(store.read(ids[0]), 0, {"observation.images.top": str(tmp_path / "frames.npy")})]
    _judge(peer, "exported with stored JPEGs", tmp_path / "set", want, tolerance=4)
