"""What a server remembers over a restart: a probation, the way back, who was given up; in bounded room."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from typing import Any

import grpc
import pytest

from policy_server.errors import ConfigError, RefusedBundleError
from policy_server.probation import ProbationConfig
from policy_server.standing import (
    MAX_BARRED,
    MAX_BYTES,
    MAX_EPISODE,
    Bar,
    Place,
    Standing,
    Trial,
    read_standing,
    write_standing,
)
from policy_server.trial import Judge
from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode
WATCHED = ProbationConfig(episodes=20, in_a_row=4, assumed_failures=0.2)


async def test_a_restart_in_the_middle_of_a_probation_goes_on_with_it(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, probation=WATCHED, state=place.root / "state.json")
    async with running(config) as run:
        await run.load(b)
        for i in range(3):
            await run.report(b.version, f"b{i}", True)
    async with running(config) as run:
        now = await run.status()
        assert [slot.version for slot in now.slots if slot.active] == [b.version]
        assert (now.probation.failures, now.previous) == (3, a.version)
        assert (await run.report(b.version, "b3", True)).verdict == "rolled back"
        assert (await run.report(a.version, "a0", False)).serving == a.version
    async with running(config) as run:
        assert [slot.version for slot in (await run.status()).slots if slot.active] == [a.version]


async def way_back(run: Any) -> str:
    """The version that is gone back to, once the server has loaded or given up what it remembers of it."""
    for _ in range(3000):
        if not run.server.servicer.deployment.restoring:
            break
        await asyncio.sleep(0.01)
    return (await run.status()).previous


async def test_after_a_restart_without_a_probation_one_call_still_goes_back(place, running):
    a, b, c = place.bundle("a"), place.bundle("b", 1.0), place.bundle("c", 2.0)
    config = place.config(bundle=a.path, state=place.root / "state.json")
    async with running(config) as run:
        await run.load(b, without_probation=True)
    for _ in range(2):  # also a restart after a restart
        async with running(config) as run:
            assert await way_back(run) == a.version
            now = await run.status()
            assert [slot.version for slot in now.slots if slot.active] == [b.version]
    async with running(config) as run:  # asked for before it is there
        assert (await run.stub.Rollback(pb.RollbackRequest(), timeout=30)).version == a.version
    async with running(config) as run:
        assert await way_back(run) == ""
        await run.load(c, without_probation=True)
    async with running(config) as run:
        first = await run.load(b, by_person=True, without_probation=True)
        assert (first.active, await way_back(run)) == (True, c.version)


async def test_a_server_started_with_another_bundle_has_no_way_back(place, running):
    a, b, c = place.bundle("a"), place.bundle("b", 1.0), place.bundle("c", 2.0)
    state = place.root / "state.json"
    async with running(place.config(bundle=a.path, state=state)) as run:
        await run.load(b, without_probation=True)
    async with running(place.config(bundle=c.path, state=state)) as run:
        assert await way_back(run) == ""
        assert [slot.version for slot in (await run.status()).slots] == [c.version]


@pytest.mark.parametrize("harm", ["gone", "tampered", "another"])
async def test_a_way_back_that_cannot_be_loaded_again_is_said_and_serving_goes_on(place, running, harm):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, state=place.root / "state.json")
    async with running(config) as run:
        await run.load(b, without_probation=True)
    if harm == "tampered":
        with (a.path / "model.onnx").open("r+b") as file:
            file.write(b"X")
    else:
        shutil.rmtree(a.path)
        if harm == "another":
            place.bundle("a", 3.0)
    for restart in range(2):
        async with running(config) as run:
            assert await way_back(run) == ""
            now = await run.status()
            assert [slot.version for slot in now.slots if slot.active] == [b.version]
            said = [(event.kind, event.version) for event in now.events]
            assert said.count(("no way back", a.version)) == 1, f"restart {restart}"
            error = await run.refusal(run.stub.Rollback(pb.RollbackRequest(), timeout=30))
            assert error.code() is Code.FAILED_PRECONDITION


def test_the_longest_memory_that_is_written_can_be_read_again(tmp_path):
    standing, worst = Standing(), "\x01"  # six bytes in JSON
    judge = Judge(WATCHED, standing)
    for i in range(MAX_BARRED + 5):
        judge.bar(f"{i:04d}" + 60 * worst, 600 * worst, by_server=True)
        standing.record(f"{i:04d}" + 60 * worst)
        standing.first_report_of(f"{i:04d}" + (MAX_EPISODE - 4) * worst)
        standing.note("swapped", 64 * worst, 64 * worst, 512 * worst)
    place = Place(version=64 * worst, path=4096 * worst, backend=32 * worst)
    standing.serving = standing.previous = standing.fallback = place
    standing.configured = 4096 * worst
    text = standing.model_dump_json()
    write_standing(tmp_path / "state.json", text)
    kept = read_standing(tmp_path / "state.json")
    assert kept.model_dump_json() == text
    assert len(kept.barred) == MAX_BARRED
    assert f"{4:04d}" + 60 * worst not in kept.barred
    assert f"{5:04d}" + 60 * worst in kept.barred


def test_a_memory_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    before, after = Standing(configured="a"), Standing(configured="b")
    write_standing(tmp_path / "state.json", before.model_dump_json())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "fsync", full)
        write_standing(tmp_path / "state.json", after.model_dump_json())
    assert read_standing(tmp_path / "state.json") == before


def test_a_memory_too_large_to_be_one_is_not_read(tmp_path):
    (tmp_path / "state.json").write_text(MAX_BYTES * " " + Standing().model_dump_json())
    with pytest.raises(ConfigError, match="damaged"):
        read_standing(tmp_path / "state.json")


def test_a_bar_that_is_forgotten_is_an_event():
    standing = Standing()
    for i in range(MAX_BARRED + 1):
        standing.bar(f"{i}", Bar(reason="falls", wall="", by_server=True))
    assert (standing.events[-1].kind, standing.events[-1].version) == ("bar forgotten", "0")
    assert "falls" in standing.events[-1].reason


async def test_a_server_is_not_started_with_what_was_rolled_back(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    state = place.root / "state.json"
    async with running(place.config(bundle=a.path, probation=WATCHED, state=state)) as run:
        await run.load(b)
        await run.stub.Rollback(pb.RollbackRequest(why="drops the cube"), timeout=5)
    with pytest.raises(RefusedBundleError, match="drops the cube"):
        async with running(place.config(bundle=b.path, probation=WATCHED, state=state)):
            pass


async def test_what_was_given_up_is_no_way_back_whatever_the_memory_says(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    state = place.root / "state.json"
    config = place.config(bundle=a.path, state=state)
    async with running(config):
        pass
    kept = read_standing(state)
    kept.previous = Place(version=b.version, path=str(b.path), backend="onnx")
    kept.barred = {b.version: Bar(reason="4 of 4 failed", wall="2026-01-01", by_server=True)}
    write_standing(state, kept.model_dump_json())
    async with running(config) as run:
        assert await way_back(run) == ""
        now = await run.status()
        assert [slot.version for slot in now.slots] == [a.version]
        assert (now.events[-1].kind, now.events[-1].version) == ("no way back", b.version)


async def test_a_memory_in_which_the_serving_version_is_barred_is_set_right(place, running):
    a = place.bundle("a")
    state = place.root / "state.json"
    config = place.config(bundle=a.path, probation=WATCHED, state=state)
    async with running(config):
        pass
    kept = read_standing(state)
    kept.fallback = kept.serving
    kept.trial = Trial(version=a.version, predecessor=a.version, bound=0.5, left_s=60.0)
    kept.barred = {a.version: Bar(reason="4 of 4 failed", wall="2026-01-01", by_server=True)}
    write_standing(state, kept.model_dump_json())
    async with running(config) as run:
        now = await run.status()
        assert [slot.version for slot in now.slots if slot.active] == [a.version]
        assert (len(now.barred), now.HasField("probation")) == (0, False)
        assert now.events[-1].kind == "bar lifted"
