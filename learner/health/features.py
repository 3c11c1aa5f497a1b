"""What a healthy motor's effort is explained by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learner.health.telemetry import Motion

F64 = npt.NDArray[np.float64]

# Below this speed (rad/s) Coulomb friction could be anything up to its limit: no evidence.
MOVING_RAD_S = 0.10
_SIGN_RAD_S = 0.05


def inverse_dynamics(m: Motion) -> F64:
    """(n, F) features whose linear combination is the effort of any one joint, friction included.

    Gravity enters through sine and cosine of the link angles, which for a planar chain are sums of
    joint angles; as the sign convention of each joint is not known here, every sum of consecutive
    joints with either sign is offered (ridge picks). Then inertia (all accelerations), back-EMF and
    viscous friction (velocities), Coulomb friction (smoothed signs), and centrifugal terms.

    The lag behind the goal is left out on purpose: through the position controller it would explain
    any effort, that of a fault too.
    """
    arm = m.q[:, 1:-1] if m.q.shape[1] > 2 else m.q
    columns = [np.ones(len(arm))]
    for start in range(arm.shape[1]):
        sums = [arm[:, start]]
        for joint in range(start, arm.shape[1]):
            if joint > start:
                sums = [s + sign * arm[:, joint] for s in sums for sign in (1.0, -1.0)]
            for angle in sums:
                columns += [np.sin(angle), np.cos(angle)]
    parts = (m.qdd, m.qd, np.tanh(m.qd / _SIGN_RAD_S), m.qd**2)
    return np.concatenate([np.stack(columns, axis=1), *parts], axis=1)


def drive(m: Motion, joint: int) -> F64:
    """(n, 3) features of the position controller of one joint: its lag, its speed, a constant.

    Explains the effort whatever resists the motion: what it leaves over is the drive's own fault.
    """
    return np.stack([m.lag[:, joint], m.qd[:, joint], np.ones(len(m.q))], axis=1)


def ridge(features: F64, target: F64, strength: float) -> F64:
    """Weights (F,) of a ridge regression; ``strength`` is relative to each standardised column's energy."""
    scale = features.std(axis=0)
    varying = scale > 1e-9
    scale = np.where(varying, scale, 1.0)
    centre = np.where(varying, features.mean(axis=0), 0.0)
    x = (features - centre) / scale
    penalty = strength * len(x) * np.where(varying, 1.0, 1e-12)
    weights = np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ target) / scale
    # The constant column (first or last) takes up what centring moved.
    constant = int(np.flatnonzero(~varying & (np.abs(features).max(axis=0) > 0))[0])
    weights[constant] -= float(centre @ weights)
    return weights
