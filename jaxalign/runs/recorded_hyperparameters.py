"""Collects an objective's hyperparameters by name: its options, and values that `functools.partial` binds to its loss function."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from jaxalign.objectives.base import Objective

# These options determine how a method is computed, not what it optimises.
_NOT_HYPERPARAMETERS = ("reference", "total_steps")


def hyperparameters(objective: Objective) -> dict[str, Any]:
    """Returns plain values (numbers, text, booleans, None and lists of them) by name, which JSON can hold."""
    found = {
        field.name: getattr(objective, field.name)
        for field in dataclasses.fields(objective)
        if field.name not in _NOT_HYPERPARAMETERS
    }
    for name in ("loss_function", "divergence"):
        function = found.pop(name, None)
        if callable(function):
            found |= bound_values(function)
    return {name: _plain(value) for name, value in found.items() if _is_plain(value)}


def bound_values(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the values of a function's keyword-only parameters: the values bound by a partial, or otherwise the defaults."""
    given: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        given = {**function.keywords, **given}
        function = function.func
    parameters = inspect.signature(function).parameters.values()
    keywords = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    values = {
        parameter.name: parameter.default
        for parameter in keywords
        if parameter.default is not parameter.empty
    }
    return {**values, **given}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
