"""Binds the macros and parameters of the command line in gin, with the type that their readers take."""

import contextlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gin
import gin.config

from jaxalign.cli import t5x_names, values
from jaxalign.cli.commands import UsageError
from jaxalign.cli.flags import Setting
from jaxalign.cli.gin_errors import explained

_MACRO = "gin.macro"


def apply(settings: Iterable[Setting]) -> None:
    """Binds settings in gin; of two settings with the same name the later one is used.

    A value that starts like a reference (``@function()``, ``%MACRO``), or a list or mapping that holds one, is gin's own syntax.
    `values.parse_setting` reads every other value. It runs after the references, because these decide which parameters read the value.

    Raises:
      UsageError: the name or value of a setting cannot be read; the message names the flag.
    """
    last = {setting.key: setting for setting in settings}
    plain = [setting for setting in last.values() if not _is_reference(setting.text)]
    for setting in last.values():
        selector = _selector(setting.key)
        if selector:
            _register_by_name(selector)
        if setting not in plain:
            for reference in re.findall(r"@([\w./]+)", setting.text):
                _register_by_name(reference.rpartition("/")[2])
            with _advised(setting):
                gin.parse_config(f"{setting.key} = {setting.text}")
    for setting in plain:
        _bind(setting)


def _bind(setting: Setting) -> None:
    value = values.parse_setting(setting.text, list(_annotations(setting.key)))
    if isinstance(value, str) and re.match(r"[(\[{'\"]", value):
        raise UsageError(
            f"could not read the value of {setting.flag}={setting.text}; is a bracket or quote left open?"
        )
    with _advised(setting):
        # A literal such as `nan` has no spelling in gin.
        key = setting.key if "." in setting.key else f"{setting.key}/{_MACRO}.value"
        gin.bind_parameter(key, value)


@contextlib.contextmanager
def _advised(setting: Setting) -> Iterator[None]:
    """Explains gin's errors about a setting; for a name that only T5X has, with the equivalent setting of jaxalign."""
    try:
        with explained(f"{setting.flag}={setting.text}"):
            yield
    except UsageError as error:
        told = t5x_names.advice(setting.key)
        if told is None:
            raise
        raise UsageError(f"{setting.flag}={setting.text}: {told}") from error


def _is_reference(text: str) -> bool:
    text = text.strip()
    return text[:1] in "@%" if text[:1] not in "([{" else bool(re.search(r"[@%]\w", text))


def bind_parameter(selector: str, name: str, value: Any) -> None:
    """Sets a parameter of the command; if a macro supplies it, sets the macro, because other parameters may read it too."""
    bound = gin.config._CONFIG.get(("", selector), {}).get(name)
    macro = macro_of(bound)
    if macro and not macro.startswith("gin."):
        gin.bind_parameter((macro, _MACRO, "value"), value)
    else:
        gin.bind_parameter(("", selector, name), value)


def expand_home() -> None:
    """Replaces ``~`` in every value of gin's configuration."""
    for (scope, selector), parameters in list(gin.config._CONFIG.items()):
        for name, value in list(parameters.items()):
            expanded = values.expand_home(value)
            if expanded is not value and expanded != value:
                gin.bind_parameter((scope, selector, name), expanded)


def register(target: Any, module: str) -> None:
    """Makes a function or class configurable under its module's name, unless a gin file has already done so."""
    if gin.config._inverse_lookup(target) is None:
        gin.external_configurable(target, module=module)


def macro_of(value: Any) -> str:
    """Returns the macro that a bound value refers to, or ''."""
    is_macro = (
        isinstance(value, gin.config.ConfigurableReference)
        and value.configurable.selector == _MACRO
    )
    return "/".join(value.scopes) if is_macro else ""


def bound_value(selector: str, name: str) -> Any:
    """Returns the value that a parameter of the command is bound to, through macros; None if it is not bound."""
    value = gin.config._CONFIG.get(("", selector), {}).get(name)
    while macro := macro_of(value):
        value = gin.config._CONFIG.get((macro, _MACRO), {}).get("value")
    return value


def annotations_of(target: Callable[..., Any]) -> dict[str, str]:
    """Returns the annotations of a function's or class's parameters, as written."""
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


def _annotations(key: str) -> Iterator[str]:
    """Yields the annotations of the parameters that a macro or parameter sets, also through other macros."""
    selector = _selector(key)
    if selector:
        matches = gin.config._REGISTRY.matching_selectors(selector)
        if len(matches) == 1:
            target = gin.config._REGISTRY[matches[0]].wrapped
            annotation = annotations_of(target).get(key.rpartition(".")[2])
            if annotation:
                yield annotation
        return
    macros, seen = [key], {key}
    while macros:
        macro = macros.pop()
        for (scope, owner), parameters in gin.config._CONFIG.items():
            for name, value in parameters.items():
                if macro_of(value) != macro:
                    continue
                if owner == _MACRO and scope not in seen:
                    macros.append(scope)
                    seen.add(scope)
                elif owner != _MACRO:
                    annotation = annotations_of(gin.config._REGISTRY[owner].wrapped).get(name)
                    if annotation:
                        yield annotation


def _selector(key: str) -> str:
    """Returns the function or class of ``scope/function.parameter``; '' for a macro."""
    return key.rpartition("/")[2].rpartition(".")[0]


def _register_by_name(selector: str) -> None:
    """Registers the object that a command-line name means, if no file has used it.

    The name is `adafactor` or `optimizers.adafactor` if some file imported `jaxalign.training.optimizers`, or a full dotted name.
    """
    if gin.config._REGISTRY.matching_selectors(selector):
        return
    *parents, name = selector.split(".")
    modules = [
        statement.module
        for statement in sorted(gin.config._IMPORTS)
        if not parents or f".{statement.module}".endswith(f".{'.'.join(parents)}")
    ]
    if parents:
        modules.append(".".join(parents))
    for module in modules:
        with contextlib.suppress(ImportError, ValueError):
            target = getattr(importlib.import_module(module), name, None)
            if callable(target):
                register(target, module)
                return
