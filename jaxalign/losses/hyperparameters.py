"""Checks of hyperparameters, which run when a loss is traced.

An objective traces its loss once when it is built, so a wrong value is reported by name before any data are read or compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxalign.errors import UserError


class HyperparameterError(UserError):
    """A hyperparameter has a value that is invalid for all data."""


def require_positive(method: str, **values: float | int) -> None:
    """Raises `HyperparameterError`, naming method and hyperparameter, unless every value is a finite number above 0."""
    _require_numbers(method, values)
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise HyperparameterError(f"{method}.{name} must be positive and finite, not {value}")


def require_nonnegative(method: str, **values: float | int) -> None:
    """Raises `HyperparameterError` unless every value is a finite number of at least 0."""
    _require_numbers(method, values)
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise HyperparameterError(f"{method}.{name} must be at least 0 and finite, not {value}")


def require_probability(method: str, **values: float | int) -> None:
    """Raises `HyperparameterError` unless every value lies in [0, 1]."""
    _require_numbers(method, values)
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise HyperparameterError(f"{method}.{name} is a probability in [0, 1], not {value}")


def require_flip_rate(method: str, **values: float | int) -> None:
    """Raises `HyperparameterError` unless every value lies in [0, 1/2): above it labels carry the opposite information."""
    _require_numbers(method, values)
    for name, value in values.items():
        if not 0 <= value < 0.5:
            raise HyperparameterError(
                f"{method}.{name} is the probability of a flipped label, in [0, 0.5), not {value}"
            )


def require_one_of(method: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises `HyperparameterError` unless the value is one of the choices."""
    if value not in choices:
        raise HyperparameterError(
            f"{method}.{name} must be one of {', '.join(choices)}, not {value!r}"
        )


def _require_numbers(method: str, values: dict[str, float | int]) -> None:
    for name, value in values.items():
        if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
            raise HyperparameterError(f"{method}.{name} must be a number, not {value!r}")
