"""Frontiers of reward against KL: which points lie on one, and what it gives at a KL."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LARGEST_KL = 2.0


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Points in the order of their KL, from the start on.

    Attributes:
      points: with ``validation`` and ``test`` measures each; the first is the start, with a KL of 0.
    """

    points: list[dict[str, Any]]

    def at(self, kl: float, measure: str = "reward", split: str = "test") -> float | None:
        """Returns a measure at a KL, linear between points; None beyond the last one."""
        x = np.array([point[split]["kl"] for point in self.points])
        y = np.array([point[split][measure] for point in self.points])
        order = np.argsort(x, kind="stable")
        return None if kl > x.max() else float(np.interp(kl, x[order], y[order]))

    def nearest(self, kl: float, within: float = 0.3) -> dict[str, Any] | None:
        """Returns the point whose test KL is nearest to `kl`, or None if it is further away than this share of it."""
        point = min(self.points, key=lambda each: abs(each["test"]["kl"] - kl))
        return point if abs(point["test"]["kl"] - kl) <= within * kl else None


def frontier(runs: Sequence[Sequence[Mapping[str, Any]]], start: Mapping[str, Any]) -> Frontier:
    """Returns the frontier of the points of several runs: those that no other point beats in validation reward at a KL no larger.

    Points are chosen by the validation split alone, so that the test measures of a frontier are not the best of many.

    Args:
      runs: the points of each run, with ``validation`` and ``test`` measures.
      start: the measures of the policy before training.
    """
    best = start["validation"]["reward"]
    kept = [{"updates": 0, **{split: start[split] for split in ("validation", "test")}}]
    everything = [dict(point) for points in runs for point in points]
    for point in sorted(everything, key=lambda each: each["validation"]["kl"]):
        if point["validation"]["reward"] > best:
            best = point["validation"]["reward"]
            kept.append(point)
    return Frontier(kept)


def area(curve: Frontier, split: str = "validation", largest: float = LARGEST_KL) -> float:
    """Returns the mean over KL from 0 to `largest` of the reward above the start's; beyond its last point a frontier stays constant.

    Args:
      curve: a frontier.
      split: whose measures count.
      largest: in nats a response.
    """
    x = np.array([point[split]["kl"] for point in curve.points])
    gain = np.array([point[split]["reward"] for point in curve.points])
    order = np.argsort(x, kind="stable")
    x, gain = x[order], gain[order] - gain[0]
    grid = np.linspace(0, largest, 401)
    return float(np.trapezoid(np.interp(grid, x, gain), grid) / largest)


def win_rate(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Returns the share of pairs of samples to a test act in which the first point's has the higher reward; ties count half."""
    one, other = (np.array(point["test"]["rewards"]) for point in (first, second))
    return float(np.mean((one > other) + 0.5 * (one == other)))
