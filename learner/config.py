"""Every knob of the learner: frozen, bounded, an unknown key is an error."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from learner.errors import ConfigError
from protos.configuration import first_problem


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Frozen):
    """How episodes become arrays.

    ``image_size`` (height, width) px resizes frames when set. ``max_gap_ticks``: a step whose
    successor is later than this many ticks is a gap; ``gaps`` says whether a gap is refused or
    splits the episode. ``max_frame_age_ticks`` is how old the newest frame of a tick may be.
    Pictures are decoded before training when they fit into ``ram_gib``. A larger set is decoded while
    training asks for it, and kept in folder ``scratch``, if given, of which all runs together use at most
    ``cache_gib``. ``decode_threads`` prepare batches ahead. A sample shows ``history`` observations.
    """

    cameras: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    gaps: Literal["refuse", "split", "accept"] = "refuse"
    max_gap_ticks: float = Field(default=1.5, gt=1.0, le=100.0)
    max_frame_age_ticks: float = Field(default=3.0, gt=0.0, le=100.0)
    pause_rad: float = Field(default=1e-4, ge=0.0, le=0.1)
    pause_s: float = Field(default=1.0, gt=0.0, le=60.0)
    ram_gib: float = Field(default=6.0, gt=0.0, le=1024.0)
    scratch: Path | None = None
    cache_gib: float = Field(default=20.0, gt=0.0, le=100_000.0)
    history: int = Field(default=1, ge=1, le=64)
    decode_threads: int = Field(default=2, ge=1, le=64)


class JitterConfig(_Frozen):
    """Colour jitter: each factor is drawn per image from [1 − x, 1 + x]; ``shift`` moves it by whole pixels.

    A shifted picture is filled by repeating its edge; every picture of a batch has its own shift in
    [−shift, shift] both ways.
    """

    brightness: float = Field(default=0.2, ge=0.0, lt=1.0)
    contrast: float = Field(default=0.2, ge=0.0, lt=1.0)
    saturation: float = Field(default=0.2, ge=0.0, lt=1.0)
    shift: int = Field(default=0, ge=0, le=64)


class WatchConfig(_Frozen):
    """When a training run stops because of a loss (`learner.watch.LossWatch`).

    A batch's loss is a spike when it lies ``factor`` deviations above the median of the last ``window``
    losses, once the warm-up is over; 0 turns that off. NaN and infinity always stop a run.
    """

    factor: float = Field(default=30.0, ge=0.0, le=1e6)
    window: int = Field(default=200, ge=10, le=10_000)


class ModelConfig(_Frozen):
    """Which ACT to build; ``overrides`` replace fields of the preset's ``ACTConfig`` by name.

    ``pretrained`` is what its image backbones begin with: "imagenet" or a file (see `policies.pretrained`).
    """

    preset: Literal["small", "full"] = "small"
    pretrained: Literal["imagenet"] | Path | None = None
    overrides: dict[str, bool | int | float | str | tuple[int, int]] = Field(default_factory=dict)


class TrainConfig(_Frozen):
    """One training run: a fixed number of steps, every random draw a function of (seed, step).

    ``lr`` is AdamW's rate after ``warmup`` linear steps, then cosine to ``lr_end``·lr.
    ``backbone_lr`` scales it for the image backbone. ``ema`` is the decay of the averaged
    weights, which are the ones that are published. ``precision`` "auto" means bf16 autocast
    where the processor multiplies bf16 in hardware, else fp32.

    Every step takes ``accumulate`` batches of ``batch`` samples and averages their gradients.
    ``recompute`` forgets what is inside the layers on the way forward and computes it again on the way
    back: the same gradients, less memory, more time. ``compile`` hands the network to torch.compile;
    "auto" does so for long runs on a GPU (`learner.compiled`).
    """

    seed: int = Field(default=0, ge=0, lt=2**31)
    steps: int = Field(default=3000, ge=1, le=10_000_000)
    batch: int = Field(default=32, ge=1, le=4096)
    accumulate: int = Field(default=1, ge=1, le=1024)
    lr: float = Field(default=3e-4, gt=0.0, le=1.0)
    lr_end: float = Field(default=0.01, ge=0.0, le=1.0)
    backbone_lr: float = Field(default=1.0, ge=0.0, le=10.0)
    warmup: int = Field(default=100, ge=0, le=1_000_000)
    weight_decay: float = Field(default=1e-4, ge=0.0, le=1.0)
    clip: float = Field(default=1.0, gt=0.0, le=1000.0)
    ema: float = Field(default=0.995, ge=0.0, lt=1.0)
    batchnorm_batches: int = Field(default=24, ge=0, le=10_000)
    jitter: JitterConfig = JitterConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    recompute: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    watch: WatchConfig = WatchConfig()
    threads: int = Field(default=0, ge=0, le=256)
    checkpoint_every: int = Field(default=1000, ge=1, le=10_000_000)
    log_every: int = Field(default=20, ge=1, le=100_000)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()


class FinetuneConfig(_Frozen):
    """Incremental fine-tuning from a champion.

    ``base_share`` of every batch are base steps (at least half); the rest are corrections, whose
    oversampling over their natural share is capped at ``max_oversample``. ``penalty`` weighs the
    mean absolute difference to the champion's actions on base steps (normalised units).
    ``corrections`` False is the control arm: the same run, base steps only.
    """

    # Nobody is there to be asked about a gap: episodes are cut where they have one.
    train: TrainConfig = TrainConfig(lr=1e-4, steps=1200, warmup=50, data=DataConfig(gaps="split"))
    base_share: float = Field(default=0.5, ge=0.5, le=1.0)
    max_oversample: float = Field(default=12.0, ge=1.0, le=100.0)
    penalty: float = Field(default=0.1, ge=0.0, le=100.0)
    min_corrections: int = Field(default=3, ge=1, le=10_000)
    corrections: bool = True


class GateConfig(_Frozen):
    """The test a candidate must pass.

    ``alpha`` is the false-promotion rate that holds under any stopping rule; ``margin`` how much
    worse (success rate) a slice that is not the target may be; ``min_pairs`` per slice. The gate
    refuses to judge when ``effect`` (success-rate gain on the target slice) would be found with
    less than ``min_power`` at the planned number of pairs.
    """

    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    target: str = Field(default="gap", min_length=1)
    margin: float = Field(default=0.10, gt=0.0, lt=1.0)
    effect: float = Field(default=0.20, gt=0.0, lt=1.0)
    min_power: float = Field(default=0.5, gt=0.0, lt=1.0)
    min_pairs: int = Field(default=20, ge=1, le=100_000)
    latency_p99_ms: float = Field(default=33.0, gt=0.0, le=10_000.0)


class SeedPlan(_Frozen):
    """Three disjoint ranges of rollout seeds: search may be tuned on, gate decides, audit never does."""

    search: int = Field(default=100_000, ge=0)
    gate: int = Field(default=200_000, ge=0)
    audit: int = Field(default=300_000, ge=0)
    calibrate: int = Field(default=400_000, ge=0)
    stride: int = Field(default=10_000, ge=1)

    @model_validator(mode="after")
    def _disjoint(self) -> SeedPlan:
        starts = sorted((self.search, self.gate, self.audit, self.calibrate))
        if any(b - a < self.stride for a, b in pairwise(starts)):
            raise ValueError(f"seed ranges overlap: starts {starts} lie closer than stride {self.stride}")
        return self


class LearnerConfig(_Frozen):
    """The learner process: where its things are and how a round is run.

    ``base_where`` and ``corrections_where`` are SQL conditions over the store's catalogue. A round
    starts when ``min_new_interventions`` corrected episodes are new since the last one. ``ratchet`` is
    how the command is called (default: beside this Python); ``rollout_arguments`` are added to each
    ``ratchet evaluate``, for instance ``("--workers", "2")``. With ``idle_scheduling`` the learner runs only
    when nothing else wants the processor (SCHED_IDLE); ``nice`` is what counts without.
    """

    store: Path
    work: Path
    keys: Path
    trust: Path
    name: str = Field(default="pick_place", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    base_where: str = "kind IN ('demo', 'import') AND outcome <> 'failure'"
    corrections_where: str = "interventions > 0 AND outcome = 'success'"
    policy_server: str | None = None
    policy_identity: Path | None = None  # folder that `ratchet keys issue NAME --role deploy` made
    server_timeout_s: float = Field(default=120.0, gt=0.0, le=3600.0)
    finetune: FinetuneConfig = FinetuneConfig()
    gate: GateConfig = GateConfig()
    seeds: SeedPlan = SeedPlan()
    gate_pairs: int = Field(default=200, ge=1, le=9_999)
    audit_pairs: int = Field(default=0, ge=0, le=9_999)
    calibration_rollouts: int = Field(default=80, ge=0, le=9_999)
    require_calibration: bool = True
    min_new_interventions: int = Field(default=5, ge=1, le=10_000)
    poll_s: float = Field(default=10.0, gt=0.0, le=3600.0)
    ratchet: tuple[str, ...] = ()
    rollout_arguments: tuple[str, ...] = ()
    rollout_timeout_s: float = Field(default=1800.0, gt=0.0, le=86_400.0)
    nice: int = Field(default=19, ge=0, le=19)
    idle_scheduling: bool = True


C = TypeVar("C", bound=_Frozen)


def load_config(path: Path, kind: type[C]) -> C:
    """Read a TOML file as ``kind``. Raises ConfigError with one line: the file, the key, what is wrong."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", "check the path and its syntax") from error
    return parse_config(raw, kind, str(path))


def parse_config(raw: Mapping[str, Any], kind: type[C], where: str) -> C:
    """Check a table of values. Raises ConfigError naming the first wrong key, with the nearest right one."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problem = first_problem(kind, error)
        hint = problem.hint or "see the documentation of the configuration"
        raise ConfigError(f"{where}: {problem.what}", hint) from None
