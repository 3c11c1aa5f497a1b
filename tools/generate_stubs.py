"""Generate the Python stubs of ``protos/`` (or, with ``--check``, say whether they are in step)."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_DIR = Path("protos/ratchet/v1")


def generate(out: Path) -> None:
    """Write ``*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` below ``out``."""
    from grpc_tools import protoc

    protos = sorted(str(p.relative_to(ROOT)) for p in (ROOT / PROTO_DIR).glob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *protos,
        ]
    )
    if status != 0:
        sys.exit("protoc failed; see the message above")


def stale() -> list[str]:
    """Names of generated files that differ from what the ``.proto`` files give today."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        generate(out)
        fresh = sorted((out / PROTO_DIR).glob("*_pb2*"))
        here = {p.name for p in (ROOT / PROTO_DIR).glob("*_pb2*")}
        wrong = [
            p.name
            for p in fresh
            if p.name not in here or not filecmp.cmp(p, ROOT / PROTO_DIR / p.name, shallow=False)
        ]
        return wrong + sorted(here - {p.name for p in fresh})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a stub is out of step")
    args = parser.parse_args()
    if not args.check:
        generate(ROOT)
        return
    wrong = stale()
    if wrong:
        sys.exit(f"stubs out of step with the .proto files: {', '.join(wrong)}; run `make stubs`")


if __name__ == "__main__":
    main()
