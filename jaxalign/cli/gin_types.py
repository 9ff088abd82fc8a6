"""Are bound values of the types that the parameters say? Told before anything is built, naming the macro or parameter.

Only annotations made of plain types are checked: int, float, bool, str, None, Literal, and sequences and mappings of them. Anything else,
and any reference to a function or object, is left to the function that gets it.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import gin
import gin.config

from jaxalign.cli.commands import UsageError
from jaxalign.cli.flags import alternatives

_MACRO = "gin.macro"
_SEQUENCE = re.compile(r"(?:list|tuple|Sequence|Iterable)\[(.*?)(?:, \.\.\.)?\]")
_MAPPING = re.compile(r"(?:dict|Mapping)\[(\w+), (.*)\]")
_LITERAL = re.compile(r"(?:typing\.)?Literal\[(.*)\]")


def check(keys: Iterable[tuple[str, str]]) -> None:
    """Checks the values that gin has bound under keys (scope, selector).

    Raises:
      UsageError: naming the macro or parameter, its value and the type that is wanted.
    """
    config: Mapping[tuple[str, str], Mapping[str, Any]] = gin.config._CONFIG
    for scope, selector in sorted(keys):
        if selector.startswith("gin.") or (scope, selector) not in config:
            continue
        annotations = _annotations(gin.config._REGISTRY[selector].wrapped)
        for name, bound in config[scope, selector].items():
            macro, value = _resolved(bound, config)
            annotation = annotations.get(name)
            if annotation is None or fits(value, annotation):
                continue
            parameter = f"{gin.config._REGISTRY.minimal_selector(selector)}.{name}"
            given = (
                f"{macro} = {value!r}, but {parameter}" if macro else f"{parameter} = {value!r}; it"
            )
            raise UsageError(f"{given} takes {_readable(annotation)}")


def fits(value: Any, annotation: str) -> bool:
    """Whether a value may be what an annotation says; True where the annotation is not made of plain types."""
    if _is_reference(value):
        return True
    return any(_fits_one(value, kind) for kind in alternatives(annotation))


def _fits_one(value: Any, kind: str) -> bool:
    plain = {
        "None": value is None,
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        "str": isinstance(value, str),
        "Path": isinstance(value, str),
    }
    if kind in plain:
        return plain[kind]
    if sequence := _SEQUENCE.fullmatch(kind):
        is_one = isinstance(value, (list, tuple))
        # A tuple of several types has commas.
        return is_one and (
            "," in sequence.group(1) or all(fits(item, sequence.group(1)) for item in value)
        )
    if mapping := _MAPPING.fullmatch(kind):
        return isinstance(value, dict) and all(
            fits(key, mapping.group(1)) and fits(item, mapping.group(2))
            for key, item in value.items()
        )
    if literal := _LITERAL.fullmatch(kind):
        return value in ast.literal_eval(f"({literal.group(1)},)")
    return True


def _annotations(target: Any) -> dict[str, str]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: parameter.annotation
        if isinstance(parameter.annotation, str)
        else inspect.formatannotation(parameter.annotation)
        for name, parameter in parameters.items()
        if parameter.annotation is not parameter.empty
    }


def _resolved(value: Any, config: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[str, Any]:
    """The macro that a value comes from, or '', and the value itself."""
    macro = ""
    while _is_reference(value) and value.configurable.selector == _MACRO:
        macro = "/".join(value.scopes)
        value = config[macro, _MACRO]["value"]
    return macro, value


def _is_reference(value: Any) -> bool:
    return isinstance(value, gin.config.ConfigurableReference)


def _readable(annotation: str) -> str:
    names = {"str": "text", "bool": "True or False", "int": "a whole number", "float": "a number"}
    return " or ".join(names.get(kind, kind) for kind in alternatives(annotation))
