"""A user's mistake is one line that says what is wrong and what to do, and exit code 2.

| mistake                     | test                                                                        |
|-----------------------------|-----------------------------------------------------------------------------|
| wrong port                  | here                                                                        |
| unplugged motor             | here                                                                        |
| wrong model number          | here                                                                        |
| missing calibration         | here                                                                        |
| unknown configuration key   | here; of training in tools/commands/test_train_cli.py, test_jobs_cli.py     |
| corrupt or unsigned bundle  | here; stranger's in tools/commands/test_model_cli.py                        |
| camera gone                 | faults/test_whole_robot.py (recording, a driving policy)                    |
| dataset with missing videos | tools/commands/test_episodes_cli.py, episodes/test_lerobot_import.py        |
| full disk                   | faults/test_whole_robot.py (recording), tools/commands/test_episodes_cli.py |
|                             | (import), test_train_cli.py (training), episodes/test_disk_faults.py        |

The commands are processes of their own here, as the user's shell starts them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from episodes.spec import EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from hal.bench.emulator import EmulatorFaults, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER
from tests.tiny_policy import Policies
from tests.tools.acting import ratchet

pytestmark = pytest.mark.slow


def one_line(*arguments: str | Path) -> str:
    """What the command tells the user in the end; nothing else complains."""
    code, error = ratchet(*arguments)
    assert code == 2, error
    *before, line = error.strip().splitlines()
    assert line.startswith("ratchet: ")
    assert not [other for other in before if not other.startswith("loading ")], error
    return line


@pytest.fixture(scope="module")
def arm() -> Iterator[ServoEmulator]:
    """A follower arm on a port."""
    with ServoEmulator(KOCH_FOLLOWER, FirstOrderBackend()) as emulator:
        yield emulator


@pytest.fixture
def configure(short_dir: Path) -> Callable[[str, str], Path]:
    """Write a robot's configuration with a store in which an episode lies already."""
    store = short_dir / "episodes"
    if not store.exists():
        with EpisodeStore.open(store) as opened:
            spec = EpisodeSpec(task="kept", streams=(StreamSpec(name="action", shape=(2,)),), kind="demo")
            writer = opened.begin(spec, episode_id="kept")
            writer.append("action", 0, 0, (1.0, 2.0))
            writer.end("success", "done").wait(30)

    def write(port: str, more: str = "uncalibrated = true") -> Path:
        path = short_dir / "ratchet.toml"
        path.write_text(
            f'run_dir = "{short_dir}/run"\n[follower]\nport = "{port}"\n{more}\n'
            f'[policy]\naddress = "unix:{short_dir}/policy.sock"\n[store]\npath = "{store}"\n'
            f'[remote]\naddress = "unix:{short_dir}/control.sock"\nplaintext = true\n'
        )
        return path

    return write


@pytest.fixture(autouse=True)
def nothing_recorded_is_lost(short_dir: Path) -> Iterator[None]:
    yield
    if (short_dir / "episodes").exists():
        with EpisodeStore.open(short_dir / "episodes", create=False, mode="r") as store:
            assert store.ids() == ["kept"]
            assert store.verify().ok


def test_a_wrong_port(configure: Callable[..., Path]) -> None:
    line = one_line("up", "--config", configure("/dev/nowhere"))
    assert "there is no serial port /dev/nowhere; plug the adapter in or correct the path" in line


def test_an_unplugged_motor(configure: Callable[..., Path], arm: ServoEmulator) -> None:
    arm.set_faults(EmulatorFaults(silent_ids=frozenset({3})))
    try:
        line = one_line("up", "--config", configure(arm.port))
    finally:
        arm.set_faults(EmulatorFaults())
    assert "motor 3 (elbow_flex) does not answer" in line
    assert "; check its power and cable" in line


def test_another_motor_than_the_arm_has(configure: Callable[..., Path]) -> None:
    with ServoEmulator(KOCH_LEADER, FirstOrderBackend()) as leader:
        line = one_line("up", "--config", configure(leader.port))
    assert "motor 1 (shoulder_pan)" in line
    assert "is xl330-m077, not xl430-w250; check the ids" in line


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('calibration = "absent.json"', "absent.json"),
        ("baud = 1000000", "make one with `ratchet calibrate`"),
        ("uncalibrated = true\nbuad = 1000000", "unknown key 'follower.buad'; did you mean 'baud'?"),
    ],
    ids=["calibration is not there", "no calibration named", "unknown key"],
)
def test_a_configuration(configure: Callable[..., Path], arm: ServoEmulator, more: str, says: str) -> None:
    assert says in one_line("up", "--config", configure(arm.port, more))


@pytest.mark.parametrize(
    ("damage", "says"),
    [("corrupt", "does not have the signed hash"), ("unsigned", "has no signature")],
)
def test_a_bad_bundle_is_served_to_nobody(
    policies: Policies, tmp_path: Path, short_dir: Path, damage: str, says: str
) -> None:
    bundle = Path(shutil.copytree(policies.first.path, tmp_path / damage))
    if damage == "corrupt":
        weights = bytearray((bundle / "model.onnx").read_bytes())
        weights[-1] ^= 1
        (bundle / "model.onnx").write_bytes(weights)
    else:
        (bundle / "signature").unlink()
    line = one_line("serve", bundle, "--address", f"unix:{short_dir}/s.sock", "--trust", policies.trust)
    assert says in line
    line = one_line(
        "up", "--sim", "--dir", short_dir / "sim", "--size", "32x32", "--bundle", bundle,
        "--trust", policies.trust,
    )  # fmt: skip
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--offline", "--store", "episodes", "--seeds", "0:2"), "--seeds has no meaning with --offline"),
        (("--where", "flagged"), "--where has no meaning without --offline"),
        (("--record", "README.md"), "a file is in the way of the store"),
    ],
)
def test_options_that_would_be_ignored(arguments: tuple[str, ...], says: str) -> None:
    assert says in one_line("evaluate", "bundle", *arguments)
