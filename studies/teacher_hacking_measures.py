"""The measures of teacher hacking: KL of whole sequences, the form of golden, and the detector that needs no oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.errors import UserError


def log_slope(epochs: Sequence[float], values: Sequence[float]) -> float:
    """Returns the slope of log value on log epoch over the last third of the epochs: the detector that needs no oracle."""
    x, y = np.asarray(epochs, float), np.asarray(values, float)
    late = x >= 2 / 3 * x.max()
    return float(np.polyfit(np.log(x[late]), np.log(y[late]), 1)[0])


def hacked(golden: np.ndarray, proxy: Sequence[float]) -> dict[str, Any]:
    """Says whether golden has the form of a U, and where proxy falls while golden rises.

    Args:
      golden: [measurements, sequences].
      proxy: of every measurement.

    Returns:
      ``rise`` of golden from its lowest measurement to the last, its standard error over sequences, ``u`` if the rise is above two
      standard errors, and the ``windows``, the measurements with a lower proxy and a higher golden than the one before.
    """
    means = golden.mean(axis=1)
    lowest = int(means.argmin())
    difference = golden[-1] - golden[lowest]
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    windows = [
        number
        for number in range(1, len(means))
        if proxy[number] < proxy[number - 1] and means[number] > means[number - 1]
    ]
    rise = float(difference.mean())
    return {
        "lowest": lowest,
        "rise": rise,
        "rise_error": error,
        "u": rise > 2 * error and lowest < len(means) - 1,
        "windows": windows,
    }


def check_starts(oracle_to_teacher: float, oracle_to_student: float) -> None:
    """Refuses a teacher that is not nearer to the oracle than the student is before distillation.

    Raises:
      UserError: every arm would have to depart from the oracle.
    """
    if oracle_to_teacher >= oracle_to_student:
        raise UserError(
            f"studies.teacher_hacking: KL(oracle, teacher) is {oracle_to_teacher:.3f}, not below the student's {oracle_to_student:.3f} "
            "at its start, so that every arm would depart from the oracle: raise FIT_STEPS['teacher'] or lower FIT_STEPS['student']"
        )
