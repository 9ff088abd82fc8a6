"""Builds the arguments of a function anew with other values of macros, for commands that call it several times.

An objective keeps the hyperparameters that it was built with, so a command that trains several runs needs an objective for each of them.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gin
import gin.config

from jaxalign.cli import gin_checks
from jaxalign.cli.commands import UsageError
from jaxalign.cli.flags import did_you_mean

_MACRO = "gin.macro"
# A function with this parameter records the configuration that it returns.
_CONFIGURATION = "configuration"


def rebuilder(
    selector: str, parameter: str
) -> Callable[[Mapping[str, Any]], "functools.partial[Any]"]:
    """Returns a function from values of macros to the function that gin has bound to a parameter, with all its arguments.

    The other macros have the values of the configuration. The configuration is the same after each call.

    Args:
      selector: the full name of the command's function.
      parameter: its parameter.

    Raises:
      UsageError: gin has bound nothing to the parameter, or later, a macro is not read or its value has another type.
    """
    bound = gin.config._CONFIG.get(("", selector), {}).get(parameter)
    if not isinstance(bound, gin.config.ConfigurableReference) or bound.evaluate:
        name = f"{selector.rpartition('.')[2]}.{parameter}"
        raise UsageError(f"{name} must be a function without parentheses, such as @run.train")
    read = gin_checks.macros_read_by(selector)

    def build(values: Mapping[str, Any]) -> "functools.partial[Any]":
        unknown = sorted(set(values) - read)
        if unknown:
            hint = did_you_mean(unknown[0], sorted(read))
            raise UsageError(
                f"nothing reads the macro {unknown[0]}, which has values for rounds{hint}"
            )
        config = gin.config._CONFIG
        before = {name: dict(config.get((name, _MACRO), {})) for name in values}
        try:
            for name, value in values.items():
                gin.bind_parameter(f"{name}/{_MACRO}.value", value)
            gin_checks.check(selector, ())
            built = copy.deepcopy(bound)
            text = gin.config_str()
        finally:
            for name, content in before.items():
                config.pop((name, _MACRO), None)
                if content:
                    config[name, _MACRO] = content
        if not isinstance(built, functools.partial):
            raise UsageError(f"{parameter} is bound to {bound}, which is not a plain function")
        if _CONFIGURATION in inspect.signature(built.func).parameters:
            built = functools.partial(built, **{_CONFIGURATION: lambda: text})
        return built

    return build
