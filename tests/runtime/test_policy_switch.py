"""From the policy server to the robot's own and back, with two servers that do what they are told."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable

import pytest

from runtime.nouns import ActionChunk
from runtime.policy_client import PolicyClient
from runtime.policy_metrics import policy_metrics
from runtime.policy_switch import Change, PolicySwitch
from runtime.policy_types import PolicyUnavailableError
from tests.runtime.scripted_policy import Bench, observe


class Two:
    """A remote and a local server, the switch, and the loop's side of it."""

    def __init__(self, remote: Bench, local: Bench) -> None:
        self.remote, self.local = remote, local
        local.service.version = "local"
        self.changes: list[Change] = []
        self.switch = PolicySwitch(
            PolicyClient(remote.address, 0.5), PolicyClient(local.address, 0.5), on_change=self.changes.append
        )
        self.chunks: list[ActionChunk] = []
        self._tick = 0

    async def until(self, done: Callable[[], bool]) -> None:
        """Run ticks until something holds."""
        async with asyncio.timeout(20):
            while not done():
                self._tick += 1
                chunk = self.switch.take()
                if chunk is not None:
                    self.chunks.append(chunk)
                self.switch.begin(observe(self._tick))
                await asyncio.sleep(0.01)

    async def until_version(self, version: str) -> None:
        await self.until(lambda: bool(self.chunks) and self.chunks[-1].version == version)


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    with tempfile.TemporaryDirectory(prefix="pr") as one, tempfile.TemporaryDirectory(prefix="pl") as other:
        two = Two(Bench(one), Bench(other))
        await two.remote.start()
        await two.local.start()
        yield two
        await two.switch.close()
        for bench in (two.remote, two.local):
            await bench.client.close()
            await bench.stop()


async def test_there_and_back_with_rising_epochs_and_a_word_each(two: Two) -> None:
    await two.until_version("abc")
    assert two.changes == []
    await two.remote.stop()
    await two.until_version("local")
    assert two.switch.on_local
    assert "own policy server" in two.switch.describe()
    metrics = {(m.name, m.labels.get("server")): m.value for m in policy_metrics(two.switch)}
    assert metrics["policy_local", None] == metrics["policy_changes_total", None] == 1
    assert metrics["policy_failures_total", "remote"] >= 1
    assert metrics["policy_pictures_sent_total", "local"] >= 1
    await two.remote.start()
    await two.until_version("abc")
    assert [change.local for change in two.changes] == [True, False]
    epochs = [chunk.epoch for chunk in two.chunks]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) == 3
    assert all(a.start_tick < b.start_tick for a, b in zip(two.chunks, two.chunks[1:], strict=False))


async def test_a_server_that_falls_silent_is_left_before_its_time_out(two: Two) -> None:
    await two.until_version("abc")
    two.remote.service.delay_s = 30.0
    await two.until_version("local")
    assert "no answer" in two.changes[0].reason or "did not answer" in two.changes[0].reason


async def test_a_server_that_answers_too_late_is_not_taken_back(two: Two) -> None:
    await two.until_version("abc")
    two.remote.service.delay_s = 30.0
    await two.until_version("local")
    asked = len(two.remote.service.requests)
    await two.until(lambda: len(two.remote.service.requests) >= asked + 2)
    assert two.switch.on_local
    assert len(two.changes) == 1


async def test_a_gone_server_tells_of_the_local_bundle(two: Two) -> None:
    await two.remote.stop()
    status = await two.switch.status()
    assert status.active is not None
    assert status.active.version == "local"
    assert two.switch.on_local


async def test_without_either_the_reason_is_the_first_ones(two: Two) -> None:
    await two.remote.stop()
    two.local.service.cameras = []
    with pytest.raises(PolicyUnavailableError, match="cannot answer"):
        await two.switch.status(timeout_s=1.0)
    assert not two.switch.on_local


async def test_a_missing_picture_is_nobodys_fault(two: Two) -> None:
    await two.until_version("abc")
    for tick in range(1000, 1020):
        two.switch.begin(observe(tick, cameras=("wrist",)))
        await asyncio.sleep(0.01)
        two.switch.take()
    assert two.changes == []
