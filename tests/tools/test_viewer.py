"""What `ratchet episodes view` serves, to whom, and that looking changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from viewer_helpers import LOST, ORIGIN_NS, REPEATED, TICK_NS, TICKS, Looking, looking, viewer_store

import tools.viewer.http
import tools.viewer.library
from episodes.reader import StreamData
from episodes.store import EpisodeStore
from tools.errors import UsageError
from tools.viewer.library import Library
from tools.viewer.rerun_export import export
from tools.viewer.traces import spans, trace


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return viewer_store(tmp_path_factory.mktemp("viewer") / "store")


@pytest.fixture
def door(store: Path) -> Iterator[Looking]:
    with looking(store) as found:
        yield found


@pytest.fixture
def page(door: Looking) -> Looking:
    door.enter()
    return door


# ---- who may look


def test_a_link_works_once_and_a_new_one_is_shown(door: Looking) -> None:
    first = door.links[0].split("127.0.0.1")[1].split("/", 1)[1]
    door.enter()
    assert len(door.links) == 2
    assert door.get("/")[0] == 200
    door.cookie = ""
    assert door.get(f"/{first}")[0] == 403
    door.enter()
    assert door.get("/api/store")[0] == 200


def test_without_the_link_nothing_is_shown(door: Looking) -> None:
    for path in ("/", "/app.js", "/api/store", "/api/episodes", "/?token=", "/?token=x"):
        assert door.get(path)[0] == 403, path
    assert door.get(f"/?{door.links[0].split('?')[1]}", "HEAD")[0] == 200  # a preview uses nothing up
    assert len(door.links) == 1


def test_other_origins_and_foreign_names_are_refused(page: Looking) -> None:
    assert page.get("/api/store")[0] == 200
    assert page.get("/api/store", Host="rebound.example")[0] == 403
    assert page.get("/api/store", Host=f"127.0.0.1:{page.viewer.port + 1}")[0] == 403
    assert page.get("/api/store", Origin="http://evil.example")[0] == 403
    assert page.get("/api/store", Origin=f"http://127.0.0.1:{page.viewer.port + 1}")[0] == 403
    assert page.get("/api/store", Sec_Fetch_Site="same-site")[0] == 403
    assert page.get("/api/store", Sec_Fetch_Site="cross-site")[0] == 403
    assert page.get("/api/store", Sec_Fetch_Site="same-origin")[0] == 200
    _, _, headers = page.exchange("/api/store")
    assert "access-control-allow-origin" not in headers
    assert "default-src 'none'" in headers["content-security-policy"]


def test_only_small_reads_are_answered(page: Looking) -> None:
    assert page.get("/api/store", "POST")[0] == 405
    assert page.get("/api/store", "DELETE")[0] == 405
    assert page.get("/api/store", body=b"x" * 10)[0] == 400
    assert page.get("/api/episodes?where=" + "x" * 20_000)[0] == 431


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), RuntimeError("two\nlines"), MemoryError()]
)
def test_whatever_goes_wrong_is_answered_in_one_line(
    page: Looking, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(_: Library) -> None:
        raise error

    monkeypatch.setattr(Library, "about", fails)
    status, body = page.get("/api/store")
    assert status == 500
    assert type(error).__name__ in json.loads(body)["error"]
    assert b"Traceback" not in body
    assert b"\n" not in body
    assert page.ask("episodes")["total"] == 6


def test_what_takes_too_long_is_answered_too(page: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(tools.viewer.http, "ANSWER_S", 0.1)
    monkeypatch.setattr(Library, "about", lambda _: over.wait(30))
    status, body = page.get("/api/store")
    over.set()
    assert (status, "too long" in json.loads(body)["error"]) == (503, True)


def test_one_connection_too_many_is_told_so(page: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.viewer.http, "MAX_CONNECTIONS", 0)
    status, body = page.get("/api/store")
    assert (status, json.loads(body)["error"]) == (503, "too many connections")


def test_no_path_leads_out_of_the_store(page: Looking) -> None:
    api = "/api/episode"
    for path in (
        "/../app.py", f"{api}/..", f"{api}/%2e%2e%2fgood", f"{api}/.x", "/api/nothing", f"{api}/absent",
        f"{api}/good/frames/absent", f"{api}/good/frame/front/9999", f"{api}/good/frame/front/-1",
        f"{api}/good/traces?names=absent", f"{api}/{'a' * 5000}", f"{api}/{'a' * 5000}/traces",
        f"{api}/good/frames/{'a' * 5000}",
    ):  # fmt: skip
        status, body = page.get(path)
        assert status in (400, 404), path
        assert b"Traceback" not in body


def test_a_name_longer_than_any_is_of_no_episode(page: Looking) -> None:
    status, body = page.get(f"/api/episode/{'a' * 5000}")
    assert (status, json.loads(body)["error"]) == (404, "no episode has an id of more than 255 bytes")


def test_a_hostile_condition_is_refused_and_the_page_goes_on(page: Looking) -> None:
    greedy = quote(
        "(SELECT count(*) FROM (SELECT DISTINCT repeat('x', 2000000) || i FROM range(100000) t(i))) > 0"
    )
    status, body = page.get(f"/api/episodes?where={greedy}")
    assert (status, "needs more than 512 MB" in json.loads(body)["error"]) == (400, True)
    odd = quote("true)), x AS (SELECT 1) SELECT 2 AS y -- ")
    assert page.get(f"/api/episodes?where={odd}")[0] == 400
    assert page.ask("episodes?offset=100") == {**page.ask("episodes"), "episodes": []}
    assert len(page.ask("episodes?limit=2&offset=1")["episodes"]) == 2


def test_the_command_prints_one_link_and_ends_on_ctrl_c(store: Path) -> None:
    command = [sys.executable, "-m", "tools.cli", "episodes", "view", "corr", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert link.startswith("http://127.0.0.1:")
    assert link.endswith("#a=corrected")  # a beginning of the id was enough
    assert (rest, process.returncode) == ("", 0)


# ---- what is shown


def test_episodes_are_filtered_by_sql(page: Looking) -> None:
    everything = page.ask("episodes")
    assert everything["total"] == 6
    failed = page.ask("episodes?where=" + quote("outcome = 'failure' -- by hand"))
    assert {e["id"] for e in failed["episodes"]} == {"blind", "corrected"}
    stalled = "id IN (SELECT episode_id FROM flags WHERE kind = 'stall')"
    assert page.ask("episodes?where=" + quote(stalled))["total"] == 2
    assert len(page.ask("episodes?limit=2&offset=1")["episodes"]) == 2
    assert set(next(e for e in everything["episodes"] if e["id"] == "corrected")["kinds"]) == {
        "unfamiliar",
        "stall",
    }


def test_sql_can_neither_change_anything_nor_run_on(
    page: Looking, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in store.glob("episodes/**/*")}
    for where in (
        "true); DROP TABLE episodes; SELECT (1",
        "nonsense",
        "id = (SELECT * FROM read_text('/etc/hosts'))",
    ):
        status, body = page.get("/api/episodes?where=" + quote(where))
        assert status == 400, where
        assert "error" in json.loads(body)
    monkeypatch.setattr(tools.viewer.library, "QUERY_S", 0.3)
    endless = "(SELECT count(*) FROM range(1000000) a, range(1000000) b) > 0"
    status, body = page.get("/api/episodes?where=" + quote(endless))
    assert (status, "broken off" in body.decode()) == (400, True)
    assert page.ask("episodes")["total"] == 6
    assert {p: p.stat().st_mtime_ns for p in store.glob("episodes/**/*")} == before


def test_times_are_counted_from_the_first_sample(page: Looking) -> None:
    episode = page.ask("episode/corrected")
    tick = TICK_NS / 1e9
    assert [f["kind"] for f in episode["flags"]] == ["unfamiliar", "stall"]
    assert episode["flags"][0]["start"] == pytest.approx(15 * tick, abs=1e-3)
    assert episode["flags"][0]["evidence"]["worst"] is None  # NaN is not JSON
    assert episode["interventions"][0]["by"] == "operator"
    assert episode["seconds"] == pytest.approx((TICKS - 1) * tick, abs=1e-3)
    assert [code for _, _, code in episode["sources"]] == [2, 3, 2]
    assert episode["sources"][1][0] == pytest.approx(60 * tick, abs=1e-3)


def test_frames_come_as_stored_with_their_faults(page: Looking, store: Path) -> None:
    index = page.ask("episode/good/frames/front")
    assert len(index["t_ms"]) == TICKS - len(LOST)
    assert index["repeated"] == [REPEATED]
    assert index["missing"] == [[LOST[0] - 1, len(LOST)]]
    _, run = page.get("/api/episode/good/frame/front/3?count=4")
    with EpisodeStore.open(store, mode="r", create=False) as opened:
        stored = opened.read("good").frames("front")
        expected = b"".join(len(j).to_bytes(4, "little") + j for j in map(stored.jpeg, range(3, 7)))
    assert run == expected
    _, end = page.get(f"/api/episode/good/frame/front/{len(index['t_ms']) - 1}?count=1000")
    assert int.from_bytes(end[:4], "little") == len(end) - 4


def test_a_damaged_frame_leaves_the_others(tmp_path: Path) -> None:
    path = viewer_store(tmp_path / "store")
    with EpisodeStore.open(path, mode="r", create=False) as opened:
        lengths = opened.read("good").frames("wrist").lengths
    blob = path / "episodes" / "good" / "frames.wrist" / "0"
    data = bytearray(blob.read_bytes())
    data[int(lengths[0]) + 50] ^= 0xFF  # inside the second picture
    blob.write_bytes(data)
    with looking(path) as page:
        page.enter()
        _, run = page.get("/api/episode/good/frame/wrist/0?count=3")
    sizes, at = [], 0
    while at < len(run):
        sizes.append(int.from_bytes(run[at : at + 4], "little"))
        at += 4 + sizes[-1]
    assert sizes == [lengths[0], 0, lengths[2]]


# ---- traces


def _stream(seconds: float, rate: float) -> StreamData:
    n = int(seconds * rate)
    t = ORIGIN_NS + (np.arange(n) * 1e9 / rate).astype(np.int64)
    values = np.sin(np.arange(n) / rate)[:, None] * np.ones(6, np.float32)
    return StreamData(t, np.arange(n), values.astype(np.float32), "rad", ())


def test_ten_minutes_become_a_bounded_trace_that_keeps_its_spike() -> None:
    stream = _stream(600, 240)
    stream.values[70_001, 2] = 9.0
    cut = trace(stream, ORIGIN_NS, -np.inf, np.inf, 800)
    assert len(cut["t"]) <= 800
    assert max(cut["hi"][2]) == pytest.approx(9.0)
    assert max(cut["hi"][1]) <= 1.0 + 1e-5
    assert len(json.dumps(cut)) < 200_000
    close = trace(stream, ORIGIN_NS, 290.0, 292.0, 800)
    assert close["lo"] == close["hi"]  # near enough, every row is there
    assert close["step"] == pytest.approx(1 / 240, rel=0.01)


def test_a_gap_stays_a_gap_and_what_is_not_finite_is_null() -> None:
    stream = _stream(100, 100)
    keep = (np.arange(10_000) < 4000) | (np.arange(10_000) > 6000)
    values = stream.values[keep]
    values[5] = np.nan
    cut = trace(
        StreamData(stream.t_ns[keep], stream.seq[keep], values, "rad", ()), ORIGIN_NS, -np.inf, np.inf, 500
    )
    assert max(np.diff(cut["t"])) > 19
    near = trace(StreamData(stream.t_ns[keep], stream.seq[keep], values, "rad", ()), ORIGIN_NS, 0.0, 0.2, 500)
    assert near["lo"][0][5] is None
    json.dumps(cut, allow_nan=False)


def test_nothing_recorded_is_nothing_shown() -> None:
    empty = StreamData(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.float32), "", ())
    assert trace(empty, 0, -np.inf, np.inf, 100)["t"] == []
    assert spans(StreamData(empty.t_ns, empty.seq, np.empty(0, np.uint8), "", ()), 0) == []


# ---- Rerun


def test_without_the_sdk_the_export_says_how_to_get_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with (
        EpisodeStore.open(store, mode="r", create=False) as opened,
        pytest.raises(UsageError, match="pip install rerun-sdk"),
    ):
        export(opened.read("good"), tmp_path / "good.rrd")
    assert not list(tmp_path.iterdir())


def test_an_episode_becomes_a_rerun_recording(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is an extra and not installed")
    with EpisodeStore.open(store, mode="r", create=False) as opened:
        episode = opened.read("corrected")
        export(episode, tmp_path / "x.rrd")
        pictures = sum(int(episode.frames(c).lengths.sum()) for c in episode.cameras)
        with pytest.raises(UsageError, match="exists"):
            export(episode, tmp_path / "x.rrd")
    assert [p.name for p in tmp_path.iterdir()] == ["x.rrd"]
    assert (tmp_path / "x.rrd").read_bytes()[:4] in (b"RRF2", b"RRF3")
    assert (tmp_path / "x.rrd").stat().st_size > pictures * 0.3
