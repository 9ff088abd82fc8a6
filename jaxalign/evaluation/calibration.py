"""Calibration of a value network against what it should predict, and the residual of DRO."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxalign.evaluation.statistics import pearson, spearman


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The quality of predictions of a target, item by item.

    For DRO the prediction is V(x), and the target of a response y is ``r(x, y) - tau * log(policy / reference)``. At the optimum its
    expectation is V(x), whatever distribution y was drawn from (arXiv 2405.19107, section 3), so slope 1, intercept 0 and equal means are
    right. The mean reward is not the target: V is a soft maximum and lies above it.

    `slope` and `intercept` belong to the least-squares line target = intercept + slope * prediction. `r_squared` is
    1 - sum (target - V)^2 / sum (target - mean target)^2. It is computed for V itself, not for the line, so it is negative if V
    predicts worse than a constant. `bins` has one entry for each quantile bin of V, from low to high.
    """

    correlation: float
    rank_correlation: float
    slope: float
    intercept: float
    r_squared: float
    mean_value: float
    mean_target: float
    count: int
    bins: list[dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def calibration(
    values: Shaped[np.ndarray, " items"],
    targets: Shaped[np.ndarray, " items"],
    *,
    num_bins: int = 10,
) -> Calibration:
    """Compares predictions, such as V(x), with their targets, item by item.

    Args:
      values: [items], the predictions, in units of the targets.
      targets: [items], the targets, see `dro_targets`.
      num_bins: the number of bins with about equal numbers of items; equal values are always in the same bin.

    Raises:
      ValueError: an array is empty, the arrays are unequal, or a value is NaN or infinite.
    """
    values, targets = np.asarray(values, np.float64), np.asarray(targets, np.float64)
    if values.ndim != 1 or values.shape != targets.shape or not len(values):
        raise ValueError(
            f"calibration needs two equal vectors, got {values.shape}, {targets.shape}."
        )
    correlation = pearson(values, targets)
    variance = float(values.var())
    covariance = float(np.mean((values - values.mean()) * (targets - targets.mean())))
    slope = covariance / variance if variance > 0 else float("nan")
    total = float(np.sum((targets - targets.mean()) ** 2))
    residual = float(np.sum((targets - values) ** 2))
    return Calibration(
        correlation=correlation,
        rank_correlation=spearman(values, targets),
        slope=slope,
        intercept=float(targets.mean() - slope * values.mean()),
        r_squared=1.0 - residual / total if total > 0 else float("nan"),
        mean_value=float(values.mean()),
        mean_target=float(targets.mean()),
        count=len(values),
        bins=_bins(values, targets, num_bins),
    )


def _bins(values: np.ndarray, targets: np.ndarray, num_bins: int) -> list[dict[str, float]]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1)))
    # Only inner edges are used: the lowest and highest value belong to the outer bins.
    bin_of_item = np.searchsorted(edges[1:-1], values, side="right")
    table = []
    for index in np.unique(bin_of_item):
        inside = bin_of_item == index
        count = int(inside.sum())
        spread = float(targets[inside].std(ddof=1)) if count > 1 else 0.0
        table.append(
            {
                "low": float(values[inside].min()),
                "high": float(values[inside].max()),
                "count": count,
                "mean_value": float(values[inside].mean()),
                "mean_target": float(targets[inside].mean()),
                "standard_error": spread / count**0.5,
            }
        )
    return table


def dro_targets(
    rewards: Shaped[np.ndarray, " items"], log_ratios: Shaped[np.ndarray, " items"], tau: float
) -> Float[np.ndarray, " items"]:
    """Returns what V(x) should predict: reward - tau * log-ratio (arXiv 2405.19107, equation 5).

    Args:
      rewards: [items], standardised.
      log_ratios: [items], log(policy / reference) of each response, in nats.
      tau: the temperature of the run.
    """
    return np.asarray(rewards, np.float64) - tau * np.asarray(log_ratios, np.float64)


def residual_statistics(
    rewards: Shaped[np.ndarray, " items"],
    values: Shaped[np.ndarray, " items"],
    log_ratios: Shaped[np.ndarray, " items"],
    tau: float,
) -> dict[str, float]:
    """Returns statistics of DRO's residual delta = r - V(x) - tau * log-ratio (arXiv 2405.19107).

    Args:
      rewards, values, log_ratios: [items]; log-ratios are in nats for each response, rewards are standardised.
      tau: the temperature of the run.

    Returns:
      `mean_residual` (0 at the optimum), `rms_residual`, and `dro_loss` = mean delta^2 / 2.
    """
    delta = dro_targets(rewards, log_ratios, tau) - np.asarray(values)
    if delta.ndim != 1 or not len(delta):
        raise ValueError(f"the residual needs vectors of items, got shape {delta.shape}.")
    mean_square = float(np.mean(delta**2))
    return {
        "mean_residual": float(delta.mean()),
        "rms_residual": mean_square**0.5,
        "dro_loss": 0.5 * mean_square,
    }
