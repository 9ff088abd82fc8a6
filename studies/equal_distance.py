"""Rewards at an equal distance from the reference policy, read from the paths that runs take."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from studies.formatting import spread

# Points (distance, reward) in the order of training.
Path = Sequence[tuple[float, float]]


def rewards_at(path: Path, distance: float) -> list[float]:
    """Returns the rewards at a distance on the straight lines between the points of a path; none if it ends before."""
    found = []
    for (begin, low), (end, high) in itertools.pairwise(path):
        if min(begin, end) <= distance <= max(begin, end):
            share = (distance - begin) / (end - begin) if end != begin else 1.0
            found.append(low + share * (high - low))
    return found


def equal_distance_rows(
    paths: Mapping[str, Sequence[Path | None]], distances: Sequence[float], base: str
) -> list[dict[str, Any]]:
    """Returns table rows with the highest reward of every arm at each distance, and its difference from an arm at the last of them.

    Args:
      paths: arm -> the path of each seed, None if it has not finished.
      distances: the distances.
      base: the arm to which the others are compared, paired by seed.
    """
    rewards = {
        arm: [[max(rewards_at(path or [], each), default=None) for path in runs] for each in distances]
        for arm, runs in paths.items()
    }  # fmt: skip
    rows = []
    for arm, by_distance in rewards.items():
        row: dict[str, Any] = {"arm": f"`{arm}`"}
        for distance, values in zip(distances, by_distance, strict=True):
            row[f"at {distance:g}"] = _cell(values)
        pairs = zip(by_distance[-1], rewards[base][-1], strict=True)
        differences = [
            None if one is None or other is None else one - other for one, other in pairs
        ]
        row[f"minus `{base}`, at {distances[-1]:g}"] = "" if arm == base else _cell(differences)
        rows.append(row)
    return rows


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{spread(known)} ({len(known)})" if known else "-"
