"""Common formatting of the studies' tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float], digits: int = 3, scale: float = 1.0) -> str:
    """Formats mean and standard deviation over seeds."""
    if not values:
        return "-"
    array = np.asarray(values) * scale
    deviation = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{deviation}"
