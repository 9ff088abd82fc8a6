"""Checks of hyperparameters. They run when a loss is traced, so a wrong value is told by name before anything compiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxalign.errors import UserError


def require_positive(method: str, **values: float | int) -> None:
    """Raises `UserError`, naming method and hyperparameter, unless every value is a finite number above 0."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{method}.{name} must be positive and finite, not {value}")


def require_nonnegative(method: str, **values: float | int) -> None:
    """Raises `UserError` unless every value is a finite number of at least 0."""
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise UserError(f"{method}.{name} must be at least 0 and finite, not {value}")


def require_probability(method: str, **values: float | int) -> None:
    """Raises `UserError` unless every value lies in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{method}.{name} is a probability in [0, 1], not {value}")


def require_flip_rate(method: str, **values: float | int) -> None:
    """Raises `UserError` unless every value lies in [0, 1/2): labels flipped more often than that say nothing, or the contrary."""
    for name, value in values.items():
        if not 0 <= value < 0.5:
            raise UserError(
                f"{method}.{name} is the probability of a flipped label, in [0, 0.5), not {value}"
            )


def require_one_of(method: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises `UserError` unless the value is one of the choices."""
    if value not in choices:
        raise UserError(f"{method}.{name} must be one of {', '.join(choices)}, not {value!r}")
