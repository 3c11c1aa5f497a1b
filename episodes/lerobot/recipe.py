"""What the rows of a new or grown v3.0 set are made of: which features, which times, which tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from episodes.errors import ImportRefusedError
from episodes.lerobot import v30
from episodes.lerobot.capture import TIME
from episodes.lerobot.layout import Dataset
from episodes.lerobot.metadata import Feature
from episodes.lerobot.plan import ON_GRID_S, Facts, usable_features
from episodes.lerobot.rows import Recipe, SourceStats
from episodes.lerobot.tables import SCALAR_DTYPES
from episodes.lerobot.tasks import UNNAMED
from episodes.lerobot.v30 import Present


def make_recipe(
    dataset: Dataset, facts: dict[int, Facts], present: Present, root: Path, repairs: list[str]
) -> Recipe:
    """How the episodes of ``facts`` become rows of the set in ``root``; ``repairs`` gets what is changed.

    Raises ImportRefusedError when they do not fit into the set that is there.
    """
    keys = usable_features(dataset, facts, repairs)
    features = {k: dataset.features[k] for k in keys}
    for feature in list(features.values()):
        if not feature.is_picture and feature.dtype not in SCALAR_DTYPES:
            repairs.append(f"{feature.key} is left out: dtype {feature.dtype} has no column")
            del features[feature.key]
    off = max(f.off_grid_s for f in facts.values())
    capture = TIME not in features and off > ON_GRID_S
    if capture:
        features[TIME] = Feature(TIME, "int64", (1,), ())
    if not present.fresh:
        features, capture = _conform(features, capture, present, dataset, root)
    if off > ON_GRID_S:
        kept = f"the originals are kept in {TIME}" if TIME in features else "the set has no place for them"
        repairs.append(f"timestamps are up to {off:.3f} s off index/fps: set to it, {kept}")
    tasks = dict(present.tasks)
    listed = (dataset.episodes[i].tasks or (UNNAMED,) for i in facts)
    for texts in ([t for _, t in sorted(dataset.tasks.items())], *listed):
        for text in texts:
            tasks.setdefault(text, len(tasks))
    return Recipe(dataset, features, int(dataset.fps), capture, tasks, SourceStats(dataset.root))


def _conform(
    features: dict[str, Feature], capture: bool, present: Present, dataset: Dataset, root: Path
) -> tuple[dict[str, Feature], bool]:
    """The features in the order of the set that is there, and whether times are kept."""
    there = _own(present)
    if TIME in there and TIME not in features:
        features[TIME], capture = Feature(TIME, "int64", (1,), ()), True
    if TIME not in there and capture:
        del features[TIME]
        capture = False
    refuse_unlike(present, features, int(dataset.fps), str(dataset.root), root)
    return {k: features[k] for k in there}, capture


def refuse_unlike(
    present: Present, features: Mapping[str, Feature], fps: int, source: str, root: Path
) -> None:
    """Raises ImportRefusedError when ``features`` at ``fps`` do not fit into the set in ``root``."""
    there = _own(present)
    for key in {**there, **features}:
        one, two = there.get(key), features.get(key)
        if one is None or two is None or (one.dtype, one.shape) != (two.dtype, two.shape):
            raise ImportRefusedError(
                f"{key} is {_words(two)} in {source} and {_words(one)} in {root}",
                "the sets cannot become one: choose another folder",
            )
    if present.info.get("fps") != fps:
        raise ImportRefusedError(
            f"{root} has {present.info.get('fps')} frames a second, {source} has {fps}",
            "choose another folder",
        )


def _own(present: Present) -> dict[str, Feature]:
    """The features of a set that is there, in its order, without LeRobot's own columns."""
    return {
        k: f
        for k, f in present.features.items()
        if k in present.info["features"] and k not in v30.default_features()
    }


def _words(feature: Feature | None) -> str:
    return "absent" if feature is None else f"{feature.dtype} {feature.shape}"
