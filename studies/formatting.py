"""Common formatting of the studies' tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.recipes.jobs import read_result


def spread(values: Sequence[float], digits: int = 3, scale: float = 1.0) -> str:
    """Formats mean and standard deviation over seeds."""
    if not values:
        return "-"
    array = np.asarray(values) * scale
    deviation = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{deviation}"


def finished(folder: Path, arm: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the results of an arm's finished seeds."""
    return [r for seed in seeds if (r := read_result(folder, f"{arm}/seed{seed}")) is not None]


def unfinished(found: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[str]:
    """Returns a paragraph that names the arms without the results of all seeds, or nothing.

    Args:
      found: arm -> the results of its finished seeds.
      seeds: all seeds of the study.
    """
    names = [f"`{arm}` ({len(runs)})" for arm, runs in found.items() if len(runs) < len(seeds)]
    if not names:
        return []
    return [
        f"**Not finished with all {len(seeds)} seeds** (finished seeds in brackets): {', '.join(names)}.\n"
    ]
