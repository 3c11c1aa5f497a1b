"""The cache of decoded pictures: bounded, shared by processes, and never believed without its checksum."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learner.errors import DataError
from learner.loader.cache import DecodedCache, layout

SIZE = (8, 10)
FRAMES = 6
ONE = layout(FRAMES, SIZE)[2]


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (*SIZE, 3)).astype(np.uint8)


def claim(cache: DecodedCache, digest: str) -> str:
    name = cache.claim(digest, "front", FRAMES, SIZE)
    assert name is not None
    return name


def holds(cache: DecodedCache, name: str, frame: int) -> bool:
    out = np.zeros((*SIZE, 3), np.uint8)
    found = cache.file(name).read_into(frame, out)
    return found and np.array_equal(out, picture(frame))


def test_another_process_finds_what_one_has_decoded(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path, 10 * ONE)
    cache.file(claim(cache, "aa")).write(2, picture(2))
    other = DecodedCache(tmp_path, 10 * ONE)
    name = claim(other, "aa")
    assert holds(other, name, 2)
    assert not holds(other, name, 3)


@pytest.mark.parametrize("lost", ["pixels", "half the pixels", "the checksum"])
def test_what_a_power_cut_left_behind_is_not_believed(tmp_path: Path, lost: str) -> None:
    cache = DecodedCache(tmp_path, 10 * ONE)
    name = claim(cache, "aa")
    cache.file(name).write(2, picture(2))
    cache.close()
    head, pictures, _ = layout(FRAMES, SIZE)
    size = SIZE[0] * SIZE[1] * 3
    with (tmp_path / name).open("r+b") as file:
        if lost == "the checksum":
            file.seek(head)
            file.write(bytes(4 * FRAMES))
        else:
            file.seek(pictures + 2 * size)
            file.write(bytes(size if lost == "pixels" else size // 2))
    again = DecodedCache(tmp_path, 10 * ONE)
    name = claim(again, "aa")
    assert not holds(again, name, 2)
    again.file(name).write(2, picture(2))
    assert holds(again, name, 2)


def test_a_file_that_is_not_what_it_should_be_is_made_anew(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path, 10 * ONE)
    name = claim(cache, "aa")
    cache.close()
    (tmp_path / name).write_bytes(b"short")
    again = DecodedCache(tmp_path, 10 * ONE)
    assert not holds(again, claim(again, "aa"), 0)
    assert (tmp_path / name).stat().st_size == ONE


def test_it_never_grows_beyond_its_limit_and_forgets_the_longest_unused(tmp_path: Path) -> None:
    for digest in ("aa", "bb", "cc", "aa", "dd"):
        cache = DecodedCache(tmp_path, 3 * ONE + 10)
        claim(cache, digest)
        assert cache.used_bytes() <= 3 * ONE + 10
        cache.close()
    assert sorted(p.name[:2] for p in tmp_path.glob("*.frames")) == ["aa", "cc", "dd"]


def test_what_a_living_process_uses_is_kept_and_what_a_killed_one_used_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from learner.loader.cache import DecodedCache\n"
        f"c = DecodedCache(Path(sys.argv[1]), {ONE}); c.claim('aa', 'front', {FRAMES}, {SIZE})\n"
        "print('there', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        cache = DecodedCache(tmp_path, ONE)
        assert cache.claim("bb", "front", FRAMES, SIZE) is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert cache.claim("bb", "front", FRAMES, SIZE) is not None
    assert [p.name[:2] for p in tmp_path.glob("*.frames")] == ["bb"]


def test_a_full_disk_means_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert DecodedCache(tmp_path, 10 * ONE).claim("aa", "front", FRAMES, SIZE) is None
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        DecodedCache(tmp_path / "file", ONE)
