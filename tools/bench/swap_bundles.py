"""Bundles of `ratchet bench swap`: four that may follow one another, and nine that must be refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policies.bundle import Bundle, reissue, write_bundle
from policies.config import ACTConfig, CameraShape, act_full
from policies.keys import KeyPair, TrustStore, write_public
from policies.manifest import FP32_FILE
from tools.bench.act_bundle import export_untrained

NAMES = "abcd"
_SMALL = {
    "dim": 32,
    "heads": 4,
    "ffn": 48,
    "encoder_layers": 1,
    "vae_layers": 1,
    "latent": 4,
    "backbone_width": 8,
}


@dataclass(frozen=True, slots=True)
class Bundles:
    """``good`` in the order they are swapped; ``bad`` by what is wrong with them."""

    good: list[Bundle]
    bad: dict[str, Path]
    root: Path
    trust: Path


def make(root: Path, size: int, *, small: bool) -> Bundles:
    """Export everything below ``root``, or find it there: the published ACT, two size × size cameras.

    With ``small`` a network of a few thousand weights takes its place.
    """
    config = _small(size) if small else act_full(cameras=_cameras(size))
    first = export_untrained(root, config)
    key = KeyPair.generate()
    write_public(key.public, first.trust)
    bundles = root / "bundles"
    trust = TrustStore.load(first.trust)
    origin = Bundle.open(first.bundle, trust)
    good = []
    for name in NAMES:
        path = bundles / name
        made = path.exists()
        good.append(
            Bundle.open(path, trust) if made else reissue(origin, path, key, evaluation={"copy": name})
        )
    bad_root = bundles / "bad"
    shutil.rmtree(bad_root, ignore_errors=True)
    bad_root.mkdir(parents=True)
    small_one = Bundle.open(export_untrained(root / "small", _small(size)).bundle, _of(root / "small"))
    return Bundles(good, _bad(bad_root, good[0], small_one, key), bundles, first.trust)


def _cameras(size: int) -> tuple[CameraShape, ...]:
    return tuple(CameraShape(name=name, height=size, width=size) for name in ("front", "wrist"))


def _small(size: int) -> ACTConfig:
    return ACTConfig.model_validate({**_SMALL, "cameras": _cameras(size), "dropout": 0.0})


def _of(root: Path) -> TrustStore:
    return TrustStore.load(root / "trust")


def _bad(root: Path, good: Bundle, small: Bundle, key: KeyPair) -> dict[str, Path]:
    """One of each kind; damaged ones share their whole files with ``good`` by hard links."""
    made = {name: damaged(good.path, root / name, damage) for name, damage in DAMAGES.items()}
    other = _cameras(48)
    changes: dict[str, dict[str, object]] = {
        "wrong_robot": {"robot": "so101"},
        "wrong_shape": {"cameras": other},
        "nan": {},
    }
    for name, update in changes.items():
        manifest = small.manifest.model_copy(update=update)
        files: dict[str, Path | bytes] = {e.path: small.path / e.path for e in small.manifest.files}
        if name == "nan":
            files[FP32_FILE] = nan_when_blinded(small.read(FP32_FILE))
        made[name] = write_bundle(root / name, files, manifest, key).path
    return made


def damaged(source: Path, out: Path, damage: Callable[[Path], None]) -> Path:
    """A copy of a bundle by hard links, with one file changed by ``damage``."""
    shutil.copytree(source, out, copy_function=os.link)
    damage(out)
    return out


def _own(path: Path) -> bytes:
    """Its bytes; the link is cut, so that writing it does not write the original."""
    data = path.read_bytes()
    path.unlink()
    return data


def truncate(bundle: Path) -> None:
    """The weights end early, as after an interrupted download."""
    data = _own(bundle / FP32_FILE)
    (bundle / FP32_FILE).write_bytes(data[: len(data) // 2])


def tamper(bundle: Path) -> None:
    """One bit of the weights is another."""
    data = bytearray(_own(bundle / FP32_FILE))
    data[len(data) // 2] ^= 1
    (bundle / FP32_FILE).write_bytes(data)


def unsign(bundle: Path) -> None:
    """No signature."""
    (bundle / "signature").unlink()


def link(bundle: Path) -> None:
    """A file is a symbolic link, to the right bytes even."""
    target = bundle.parent / f"{bundle.name}.onnx"
    os.link(bundle / FP32_FILE, target)
    (bundle / FP32_FILE).unlink()
    (bundle / FP32_FILE).symlink_to(target)


def lose(bundle: Path) -> None:
    """A file is missing."""
    (bundle / FP32_FILE).unlink()


def repeat_key(bundle: Path) -> None:
    """The manifest says one thing twice."""
    text = _own(bundle / "manifest.json").decode()
    chunk = json.loads(text)["chunk"]
    (bundle / "manifest.json").write_text(f'{{"chunk":{chunk},' + text[1:])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "tampered": tamper,
    "unsigned": unsign,
    "symlink": link,
    "missing_file": lose,
    "duplicate_key": repeat_key,
}


def nan_when_blinded(graph: bytes, limit: float = 250.0, source: str = "") -> bytes:
    """The same network, but NaN where the mean of the first camera's picture exceeds ``limit``.

    A white picture gives NaN; golden vectors and most frames are fine. ``source`` names another input.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(graph)
    source = source or next(i.name for i in model.graph.input if i.name.startswith("image."))
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "actions":
                node.output[place] = "actions.fine"
    constants = {"limit": limit, "none": 0.0}
    model.graph.initializer.extend(
        helper.make_tensor(f"blind.{name}", TensorProto.FLOAT, [], [value])
        for name, value in constants.items()
    )
    model.graph.node.extend(
        [
            helper.make_node("Cast", [source], ["blind.float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["blind.float"], ["blind.mean"], keepdims=0),
            helper.make_node("Sub", ["blind.limit", "blind.mean"], ["blind.left"]),
            helper.make_node("Sqrt", ["blind.left"], ["blind.root"]),
            helper.make_node("Mul", ["blind.root", "blind.none"], ["blind.zero"]),
            helper.make_node("Add", ["actions.fine", "blind.zero"], ["actions"]),
        ]
    )
    data: bytes = model.SerializeToString()
    return data
