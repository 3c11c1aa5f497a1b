"""A candidate that is worse, made on purpose: the gate must refuse it."""

from __future__ import annotations

import torch

from episodes.store import EpisodeStore
from learner.bundles import export
from learner.config import DataConfig, TrainConfig
from learner.loading import load_dataset
from learner.train import TrainResult
from policies.act import ACT
from policies.bundle import reissue
from policies.torch_session import load_model
from tools.demo.improve import learner_config, open_promotion
from tools.demo.story import Demo
from tools.demo.teach import BASE_WHERE
from tools.errors import UsageError

NOISE = 0.3  # of each weight tensor's own spread: enough to spoil a policy, too little to be absurd


def refuse_worse(demo: Demo) -> None:
    """Disturb the champion's weights, sign the result like any other, and put it through the gate."""
    promotion = open_promotion(learner_config(demo, None))
    try:
        champion = promotion.champion()
        if champion is None:
            raise UsageError("the ledger has no champion")
        model, normaliser = load_model(champion)
        result = TrainResult(_disturbed(model, demo.plan.seed), normaliser, (), 0.0, 0.0)
        with EpisodeStore.open(demo.store, create=False, mode="r") as store:
            some = sorted(store.select(BASE_WHERE))[:4]
            few = load_dataset(store, some, DataConfig(cameras=("front", "wrist")))
        raw = export(
            result,
            few,
            demo.work / "worse-raw",
            promotion.key,
            name=champion.manifest.name,
            config=TrainConfig(),
            parent=champion,
            details={"kind": "disturbed on purpose"},
        )
        worse = reissue(raw, demo.work / "worse", promotion.key, monitors=champion.manifest.monitors)
        decision, evaluation = promotion.judge(worse, demo.work / "worse-gate")
        demo.say(
            f"a candidate disturbed on purpose ({evaluation.success_rate:.0%} success): "
            f"verdict [bold]{decision.verdict}[/bold]"
        )
        demo.figures["worse"] = {"verdict": decision.verdict, "success_rate": evaluation.success_rate}
        if decision.promoted:
            raise UsageError("the gate let a worse candidate through: please report this")
    finally:
        promotion.ledger.close()


def _disturbed(model: ACT, seed: int) -> ACT:
    """A copy with Gaussian noise on every weight matrix and kernel."""
    copy = ACT(model.config)
    copy.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(NOISE * parameter.std() * noise)
    return copy.eval()
