"""Requirements of a loss function beyond the arrays that its parameters name, and the name of its method; declared by decorators."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_ATTRIBUTE = "batch_requirements"
_NAME = "method_name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """Checked on the host before anything compiles.

    Attributes:
      min_responses: responses per prompt.
      distinct_prompts: the batch must hold at least two prompts.
      probabilities: fields of the first response, or of all, that must lie in [0, 1]; by the names of parameters.
      nonnegative: fields that must not be negative; by the names of parameters.
      margins: the loss regresses on how much better a response is, so the feedback of a pair or a ranked group must be in the data
        and not only implied by the order of its responses.
      one_scale: responses to different prompts are compared by their feedback, which the margin of a pair or the rank in a group is not
        made for.
      paired_lines: two consecutive records of the file are one comparison, between prompts too, so both must be in one batch, one after
        the other.
      imitates: the loss raises the likelihood of every response, regardless of its feedback.
      threshold: (hyperparameter, 'feedback' or 'rewards') where responses count as good if that field exceeds the hyperparameter.
    """

    min_responses: int = 1
    distinct_prompts: bool = False
    probabilities: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    margins: bool = False
    one_scale: bool = False
    paired_lines: bool = False
    imitates: bool = False
    threshold: tuple[str, str] | None = None


def requires(**requirements: Any) -> Callable[[Function], Function]:
    """Decorator that declares the `Requirements` of a loss function."""

    def declare(function: Function) -> Function:
        setattr(function, _ATTRIBUTE, Requirements(**requirements))
        return function

    return declare


def named(name: str) -> Callable[[Function], Function]:
    """Decorator that names a loss function's method, if it is not named like the function."""

    def declare(function: Function) -> Function:
        setattr(function, _NAME, name)
        return function

    return declare


def requirements_of(function: Callable[..., Any]) -> Requirements:
    """The declared requirements, also through `functools.partial`; none by default."""
    while isinstance(function, functools.partial):
        function = function.func
    declared = inspect.unwrap(function, stop=lambda wrapped: hasattr(wrapped, _ATTRIBUTE))
    return getattr(declared, _ATTRIBUTE, Requirements())


def quantities_of(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the arrays a loss function reads: its positional parameters, the required ones and those with a default.

    Keyword-only parameters are hyperparameters and not listed.
    """
    bound: set[str] = set()
    while isinstance(function, functools.partial):
        bound |= set(function.keywords)
        function = function.func
    required: list[str] = []
    optional: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if positional and name not in bound:
            (required if parameter.default is parameter.empty else optional).append(name)
    return tuple(required), tuple(optional)


def method_name(function: Callable[..., Any]) -> str:
    """``ipo`` for ``ipo_loss``, or the name given by `named`; for runs, error messages and metrics."""
    while isinstance(function, functools.partial):
        function = function.func
    declared = inspect.unwrap(function, stop=lambda wrapped: hasattr(wrapped, _NAME))
    return str(getattr(declared, _NAME, str(function.__name__).removesuffix("_loss")))
