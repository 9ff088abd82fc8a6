"""Calibration of a value network against observed rewards, and the residual of DRO."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxalign.evaluation.statistics import pearson, spearman


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The quality of V(x) as a prediction of the reward r of logged responses.

    `slope` and `intercept` belong to the least-squares line r = intercept + slope * V. `r_squared` is
    1 - sum (r - V)^2 / sum (r - mean r)^2. It is computed for V itself, not for the line, so it is negative if V
    predicts worse than a constant. V is a *soft* value, tau log E exp(r / tau) under the reference
    policy (arXiv 2405.19107). Hence it lies above the mean reward of the logged responses, and the distance
    grows as tau becomes smaller. A constant offset is not an error, but a slope far from 1 is.
    `bins` has one entry for each quantile bin of V, from low to high.
    """

    correlation: float
    rank_correlation: float
    slope: float
    intercept: float
    r_squared: float
    mean_value: float
    mean_reward: float
    count: int
    bins: list[dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def calibration(
    values: Shaped[np.ndarray, " items"],
    rewards: Shaped[np.ndarray, " items"],
    *,
    num_bins: int = 10,
) -> Calibration:
    """Compares V(x) with the reward of a logged response to x, item by item.

    Args:
      values: [items], V(x), in units of the standardised reward.
      rewards: [items], standardised rewards, one logged response for each item.
      num_bins: the number of bins with about equal numbers of items; equal values are always in the same bin.

    Raises:
      ValueError: an array is empty, the arrays are unequal, or a value is NaN or infinite.
    """
    values, rewards = np.asarray(values, np.float64), np.asarray(rewards, np.float64)
    if values.ndim != 1 or values.shape != rewards.shape or not len(values):
        raise ValueError(
            f"calibration needs two equal vectors, got {values.shape}, {rewards.shape}."
        )
    correlation = pearson(values, rewards)
    variance = float(values.var())
    covariance = float(np.mean((values - values.mean()) * (rewards - rewards.mean())))
    slope = covariance / variance if variance > 0 else float("nan")
    total = float(np.sum((rewards - rewards.mean()) ** 2))
    residual = float(np.sum((rewards - values) ** 2))
    return Calibration(
        correlation=correlation,
        rank_correlation=spearman(values, rewards),
        slope=slope,
        intercept=float(rewards.mean() - slope * values.mean()),
        r_squared=1.0 - residual / total if total > 0 else float("nan"),
        mean_value=float(values.mean()),
        mean_reward=float(rewards.mean()),
        count=len(values),
        bins=_bins(values, rewards, num_bins),
    )


def _bins(values: np.ndarray, rewards: np.ndarray, num_bins: int) -> list[dict[str, float]]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1)))
    # Only inner edges are used: the lowest and highest value belong to the outer bins.
    bin_of_item = np.searchsorted(edges[1:-1], values, side="right")
    table = []
    for index in np.unique(bin_of_item):
        inside = bin_of_item == index
        count = int(inside.sum())
        spread = float(rewards[inside].std(ddof=1)) if count > 1 else 0.0
        table.append(
            {
                "low": float(values[inside].min()),
                "high": float(values[inside].max()),
                "count": count,
                "mean_value": float(values[inside].mean()),
                "mean_reward": float(rewards[inside].mean()),
                "standard_error": spread / count**0.5,
            }
        )
    return table


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
    delta = np.asarray(rewards, np.float64) - np.asarray(values) - tau * np.asarray(log_ratios)
    if delta.ndim != 1 or not len(delta):
        raise ValueError(f"the residual needs vectors of items, got shape {delta.shape}.")
    mean_square = float(np.mean(delta**2))
    return {
        "mean_residual": float(delta.mean()),
        "rms_residual": mean_square**0.5,
        "dro_loss": 0.5 * mean_square,
    }
