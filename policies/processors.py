"""``processors.json``: how the torch form is rebuilt and in which order inputs and outputs are processed.

Statistics are not repeated here; they are in the manifest.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from policies.bundle import Bundle
from policies.config import NORM_EPS, ACTConfig
from policies.errors import ManifestError
from policies.manifest import PROCESSORS_FILE


class Processors(BaseModel):
    """The network's architecture and the steps around it, as the ONNX forms have them built in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: ACTConfig
    before: tuple[Literal["resize", "crop", "normalise"], ...]
    after: tuple[Literal["restore"], ...] = ("restore",)
    eps: float = NORM_EPS

    @classmethod
    def of(cls, config: ACTConfig) -> Processors:
        """The processing that belongs to ``config``."""
        before: list[Literal["resize", "crop", "normalise"]] = ["normalise"]
        if config.crop is not None:
            before.insert(0, "crop")
        if config.resize is not None:
            before.insert(0, "resize")
        return cls(architecture=config, before=tuple(before))

    def to_bytes(self) -> bytes:
        """JSON for the bundle."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def read(cls, bundle: Bundle) -> Processors:
        """From a verified bundle. Raises ManifestError when this software would process otherwise."""
        try:
            found = cls.model_validate_json(bundle.read(PROCESSORS_FILE))
        except ValidationError as error:
            first = error.errors()[0]
            raise ManifestError(
                f"{bundle.path / PROCESSORS_FILE}: {first['msg']}; made by other software?"
            ) from None
        if found != cls.of(found.architecture):
            raise ManifestError(
                f"{bundle.path / PROCESSORS_FILE} asks for other processing; made by other software?"
            )
        return found
