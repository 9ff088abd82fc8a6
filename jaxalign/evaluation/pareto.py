"""Pareto fronts: the policies that no other policy dominates, and the area that a front dominates. Uses only numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Points = Float[np.ndarray, "points objectives"]


def non_dominated(points: Points) -> Bool[np.ndarray, " points"]:
    """Returns which points no other point dominates; higher is better in every objective.

    A point dominates another if it is at least as good in every objective and better in at least one, so equal points are all kept.

    Raises:
      ValueError: the points are not ``[points, objectives]`` or hold NaN or infinity.
    """
    array = _checked(points)
    at_least = np.all(array[:, None] >= array[None, :], axis=2)
    better = np.any(array[:, None] > array[None, :], axis=2)
    return ~np.any(at_least & better, axis=0)


def hypervolume(points: Float[np.ndarray, "points 2"], reference: Float[np.ndarray, " 2"]) -> float:
    """Returns the area between a reference point and the front of two objectives; higher is better in both.

    Args:
      points: any points, including dominated ones.
      reference: the worst corner, for example the untrained policy's scores; a point that does not exceed it in both adds nothing.

    Returns:
      The area, in the product of the objectives' units; comparable between methods only with the same reference.

    Raises:
      ValueError: there are not two objectives, or a number is not finite.
    """
    array = _checked(points)
    corner = np.asarray(reference, np.float64)
    if array.shape[1] != 2 or corner.shape != (2,):
        raise ValueError(
            f"hypervolume needs two objectives, got points {array.shape} and reference {corner.shape}."
        )
    if not np.all(np.isfinite(corner)):
        raise ValueError(f"the reference point {corner} is not finite.")
    gains = array - corner
    gains = gains[np.all(gains > 0, axis=1)]
    area, height = 0.0, 0.0
    # From right to left, each point adds the strip above the points to its right.
    for width, rise in gains[np.lexsort((-gains[:, 1], -gains[:, 0]))]:
        area += width * max(rise - height, 0.0)
        height = max(height, rise)
    return float(area)


def _checked(points: Any) -> Points:
    array = np.asarray(points, np.float64)
    if array.ndim != 2:
        raise ValueError(f"points must be [points, objectives], got {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"points {array.shape} hold NaN or infinity.")
    return array
