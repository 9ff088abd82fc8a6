"""Checks that bound values have the types of their parameters; errors name the macro or parameter before anything is built.

Annotations made of plain types are compared with the value: int, float, bool, str, None, Literal, and sequences and mappings of them.
If the annotation is a class, only two errors are found: a function or class without the parentheses that call it, and a plain value
instead of an object.
"""

import dataclasses
import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import gin
import gin.config

from jaxalign.cli import values
from jaxalign.cli.commands import UsageError
from jaxalign.cli.gin_settings import annotations_of, macro_of

_MACRO = "gin.macro"


def check(keys: Iterable[tuple[str, str]]) -> None:
    """Checks the values that gin has bound under keys (scope, selector).

    Raises:
      UsageError: a value has the wrong type; the message names the macro or parameter, its value and the required type.
    """
    config: Mapping[tuple[str, str], Mapping[str, Any]] = gin.config._CONFIG
    for scope, selector in sorted(keys):
        if selector.startswith("gin.") or (scope, selector) not in config:
            continue
        target = gin.config._REGISTRY[selector].wrapped
        annotations = annotations_of(target)
        for name, bound in config[scope, selector].items():
            annotation = annotations.get(name)
            macro, value = _resolved(bound, config)
            if annotation is None:
                continue
            parameter = f"{gin.config._REGISTRY.minimal_selector(selector)}.{name}"
            given = (
                f"{macro} = {value!r}, but {parameter}" if macro else f"{parameter} = {value!r}; it"
            )
            if _is_reference(value):
                if not value.evaluate and _wants_object(annotation, target):
                    raise UsageError(f"{given} takes what that makes: write {value!r}()")
            elif not values.fits(value, annotation):
                raise UsageError(f"{given} takes {values.readable([annotation])}")
            elif isinstance(value, (str, int, float)) and _wants_object(annotation, target):
                kind = " or ".join(values.alternatives(annotation))
                raise UsageError(f"{given} takes an object of type {kind}: write @name()")


def _wants_object(annotation: str, target: Any) -> bool:
    """Returns whether an annotation names only dataclasses or non-callable classes of jaxalign; False if that is unknown."""
    names = [kind for kind in values.alternatives(annotation) if kind != "None"]
    module = sys.modules.get(getattr(target, "__module__", ""), None)
    found = [getattr(module, name.rpartition(".")[2], None) for name in names]
    return bool(found) and all(
        inspect.isclass(cls) and _is_ours(cls) and not _is_callable(cls) for cls in found
    )


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("jaxalign.") or dataclasses.is_dataclass(cls)


def _is_callable(cls: type) -> bool:
    return any("__call__" in vars(base) for base in cls.__mro__)


def _resolved(value: Any, config: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[str, Any]:
    """Returns the macro that supplies a value, or '', and the value itself."""
    macro = ""
    while (name := macro_of(value)) and (name, _MACRO) in config:
        macro = name
        value = config[macro, _MACRO]["value"]
    return macro, value


def _is_reference(value: Any) -> bool:
    return isinstance(value, gin.config.ConfigurableReference)
