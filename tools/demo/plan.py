"""How much of everything the demo does: in full, or quickly with too little training to promise anything."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

SEED_SPAN = 1_000_000  # seeds of different kinds lie further apart than any count below

# The network and recipe that probes on two cores without bf16 settled on; docs/demo.md has the figures.
NETWORK: dict[str, bool | int | float | str] = {
    "backbone_width": 16,
    "backbone_blocks": 1,
    "dim": 128,
    "ffn": 256,
    "heads": 4,
}


class Plan(BaseModel):
    """Counts and training lengths. All figures are per run of the demo."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0, le=1000)
    promise: bool = Field(default=True, description="whether improvement is promised at this length")
    live_demonstrations: int = 2
    demonstrations: int = 80
    train_steps: int = 500
    train_lr: float = 1e-3
    calibration_rollouts: int = 90
    unattended: int = 300
    finetune_steps: int = 450
    finetune_lr: float = 6e-4
    finetune_shift: int = 3
    gate_pairs: int = 200
    gate_margin: float = 0.10
    gate_power: float = 0.5
    audit_pairs: int = 200
    live_episodes: int = 2
    workers: int = 2

    def seeds(self, kind: int) -> int:
        """First seed of the ``kind``-th range: every use of chance has a range of its own."""
        return self.seed * SEED_SPAN + kind * 100_000


def full(seed: int) -> Plan:
    """The demo that promises: at most ten minutes on two cores."""
    return Plan(seed=seed)


def quick(seed: int) -> Plan:
    """Every stage in under four minutes, with too little training to promise improvement."""
    return Plan(
        seed=seed,
        promise=False,
        live_demonstrations=1,
        demonstrations=40,
        train_steps=150,
        calibration_rollouts=30,
        unattended=30,
        finetune_steps=60,
        gate_pairs=50,
        gate_margin=0.35,
        gate_power=0.2,
        audit_pairs=30,
        live_episodes=1,
    )


# Kinds of seeds, for ``Plan.seeds``.
DEMONSTRATE, SEARCH, GATE, AUDIT, CALIBRATE, LIVE, HEALTH = range(7)
