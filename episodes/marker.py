"""The commit marker: ``episode.json``, written last, with the digest of every file of the episode.

A folder without a valid marker is not an episode. The marker protects itself with a digest over
its own content, so that no bit of an episode is outside a checksum.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from episodes.errors import DamagedError
from episodes.spec import EpisodeMeta
from episodes.zarrfile import FileTable

MARKER_NAME = "episode.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Marker:
    """What a commit marker says: the episode's metadata and its files (size, sha256)."""

    meta: EpisodeMeta
    files: FileTable

    def content_digest(self) -> str:
        """sha256 over all file digests: equal for equal data, whenever it was recorded."""
        lines = (f"{name} {size} {digest}" for name, (size, digest) in sorted(self.files.items()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def encode(self) -> bytes:
        """The marker's bytes: canonical JSON with a digest over everything else in it."""
        body = {
            "format": FORMAT,
            "meta": self.meta.model_dump(),
            "files": {name: list(entry) for name, entry in self.files.items()},
        }
        return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def read_marker(folder: Path) -> Marker:
    """Read and check the marker of a published episode. Raises DamagedError naming the file."""
    path = folder / MARKER_NAME
    try:
        body = json.loads(path.read_bytes())
        digest = body.pop("sha256")
        if hashlib.sha256(_canonical(body)).hexdigest() != digest:
            raise DamagedError(f"{path} is damaged (fails its checksum)", _REMEDY)
        if body["format"] != FORMAT:
            raise DamagedError(
                f"{path} has format {body['format']}, this program reads {FORMAT}", "update ratchet"
            )
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in body["files"].items()}
        return Marker(EpisodeMeta.model_validate(body["meta"]), files)
    except OSError as error:
        raise DamagedError(f"{path} is damaged ({error.strerror})", _REMEDY) from error
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise DamagedError(f"{path} is damaged ({type(error).__name__})", _REMEDY) from error


_REMEDY = "run verify on the store and restore the episode from a copy"


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
