"""Errors of this package: one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class PolicyError(Exception):
    """Anything that stops a policy from being built, loaded, exported or run."""


class ConfigError(PolicyError):
    """A network description that cannot be built."""


class InputError(PolicyError):
    """An observation or batch that does not fit the policy (names, shapes, dtypes)."""


class CheckpointError(PolicyError):
    """A LeRobot checkpoint that is incomplete or outside what is supported."""


class PretrainedError(PolicyError):
    """Pretrained weights that are missing, altered, or of another network."""


class ExportError(PolicyError):
    """A bundle that must not be published, for instance because its forms disagree."""


class BundleError(PolicyError):
    """A bundle that must not be loaded."""


class UnsignedBundleError(BundleError):
    """There is no signature, or it does not fit the manifest."""


class UnknownKeyError(BundleError):
    """The signature's key is not in the trust store."""


class HashMismatchError(BundleError):
    """A file's bytes are not those that were signed."""


class TruncatedBundleError(BundleError):
    """A file is missing, shorter than stated, or larger than allowed."""


class ManifestError(BundleError):
    """The manifest is signed, but not one this software understands."""


class WrongRobotError(BundleError):
    """The bundle was made for another robot or other features."""


class GoldenMismatchError(BundleError):
    """The bundle loads, but does not reproduce its own golden vectors on this machine."""


class KeyStoreError(PolicyError):
    """A signing key or trust store that cannot be used."""
