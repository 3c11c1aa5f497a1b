"""The metadata of what a conversion adds to a v3.0 set: episodes, tasks, statistics, where each came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from episodes.errors import ImportRefusedError
from episodes.files import FileLayer
from episodes.lerobot import v30
from episodes.lerobot.encode import VideoFormat
from episodes.lerobot.labels import LABELS, Labels, label_line
from episodes.lerobot.metadata import json_lines
from episodes.lerobot.plan import Facts, Limits, OutFile
from episodes.lerobot.rows import Recipe, Written
from episodes.lerobot.stats import QUANTILES, Total
from episodes.lerobot.v30 import Present

SOURCES = "meta/ratchet_sources.jsonl"
"""Which source episode became which: what makes a conversion incremental. LeRobot does not look at it."""
_FILES = FileLayer()


def known_sources(root: Path) -> set[str] | None:
    """Identities of the episodes that are in the set already; None when nobody remembered.

    Raises ImportRefusedError when a line does not say.
    """
    path = root / SOURCES
    if not path.exists():
        return None
    known = set()
    for offset, row in json_lines(path):
        if not isinstance(identity := row.get("identity"), str):
            raise ImportRefusedError(
                f"{path} does not say which episode is meant at byte {offset}",
                "remove the file to have every episode count as new",
            )
        known.add(identity)
    return known


@dataclass(frozen=True, slots=True)
class Addition:
    """What is added: by ``recipe``, from ``facts``, in the files ``data`` and ``videos``."""

    recipe: Recipe
    facts: Mapping[int, Facts]
    data: Sequence[OutFile]
    videos: Mapping[str, Sequence[OutFile]]
    present: Present
    limits: Limits
    encode: VideoFormat | None


def write_metadata(added: Addition, records: Sequence[Iterator[Written]], root: Path, staged: Path) -> None:
    """Everything in meta/ of the set in ``root``, into ``staged``; ``records``: the rows' notes, twice."""
    recipe, present = added.recipe, added.present
    every = {**recipe.features, **v30.default_features()}
    total = Total()
    total.add(present.stats)
    known: dict[str, bool] = {}
    for record in records[0]:
        total.add(record.stats)
        for key, stats in record.stats.items():
            known[key] = known.get(key, True) and set(QUANTILES) <= set(stats)
    schema = present.schema or v30.episodes_schema(every, known)
    v30.write_episodes(staged, _episode_rows(added, records[1]), schema, present.episode_files)
    v30.write_tasks(staged / "meta/tasks.parquet", recipe.tasks)
    v30.write_json(staged / "meta/stats.json", total.result())
    v30.write_json(staged / "meta/info.json", _info(added))
    _write_lines(SOURCES, _sources(added), root, staged)
    _write_lines(LABELS, _labels(added), root, staged)


def _episode_rows(added: Addition, records: Iterator[Written]) -> Iterator[dict[str, Any]]:
    fps = added.recipe.fps
    spans = {key: _spans(files) for key, files in added.videos.items()}
    for record, (file, _) in zip(records, _spans(added.data), strict=True):
        row: dict[str, Any] = {
            "episode_index": record.episode, "tasks": record.tasks, "length": record.length,
            "dataset_from_index": record.first_index,
            "dataset_to_index": record.first_index + record.length,
            **{f"data/{k}": v for k, v in v30.place(file).items()},
        }  # fmt: skip
        for key, each in spans.items():
            number, first = next(each)
            row |= {f"videos/{key}/{k}": v for k, v in v30.place(number).items()}
            row[f"videos/{key}/from_timestamp"] = first / fps
            row[f"videos/{key}/to_timestamp"] = (first + record.length) / fps
        for key, stats in record.stats.items():
            row |= {f"stats/{key}/{name}": value for name, value in stats.items()}
        yield row


def _spans(files: Sequence[OutFile]) -> Iterator[tuple[int, int]]:
    """File number and first frame of each episode, in order."""
    for file in files:
        for part in file.parts:
            yield file.number, part.first_frame


def _info(added: Addition) -> dict[str, Any]:
    recipe, present = added.recipe, added.present
    frames = sum(recipe.dataset.episodes[i].length for i in added.facts)
    episodes = present.episodes + len(added.facts)
    info = dict(present.info) if not present.fresh else _fresh_info(added)
    return info | {
        "total_episodes": episodes, "total_frames": present.frames + frames,
        "total_tasks": len(recipe.tasks), "splits": {"train": f"0:{episodes}"},
    }  # fmt: skip


def _fresh_info(added: Addition) -> dict[str, Any]:
    recipe, raw = added.recipe, added.recipe.dataset.info
    described = v30.described(raw["features"], recipe.features.values(), recipe.fps)
    for key in added.videos:
        if added.encode is not None:
            described[key]["info"] = added.encode.info(recipe.features[key].shape, recipe.fps)
    return {
        "codebase_version": "v3.0", "robot_type": raw.get("robot_type"), "chunks_size": v30.CHUNK_FILES,
        "fps": recipe.fps, "data_files_size_in_mb": added.limits.data_mb,
        "video_files_size_in_mb": added.limits.video_mb, "data_path": v30.DATA_PATH,
        "video_path": v30.VIDEO_PATH if added.videos else None, "features": described,
    }  # fmt: skip


def _sources(added: Addition) -> Iterator[str]:
    for number, (index, fact) in enumerate(added.facts.items()):
        row = {
            "episode_index": added.present.episodes + number, "source": added.recipe.dataset.root.name,
            "source_episode": index, "identity": fact.identity,
        }  # fmt: skip
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _labels(added: Addition) -> Iterator[str]:
    dataset = added.recipe.dataset
    labels = Labels(dataset.root)
    for number, index in enumerate(added.facts):
        label = labels.of(index, dataset.episodes[index].length)
        if label is not None:
            columns = tuple(c for c in label.columns if c in added.recipe.features)
            moved = {"episode_index": added.present.episodes + number, "columns": columns}
            yield label_line(label.model_copy(update=moved))


def _write_lines(name: str, lines: Iterator[str], root: Path, staged: Path) -> None:
    """The lines that are in the set already, then the new ones; nothing when there is neither."""
    first = next(lines, None)
    old = root / name
    if first is None and not old.exists():
        return
    path = staged / name
    with path.open("w") as file:
        if old.exists():
            with old.open() as before:
                for line in before:
                    file.write(line)
        if first is not None:
            file.write(first)
        file.writelines(lines)
    _FILES.sync_path(path)
