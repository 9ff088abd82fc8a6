"""Replaces references to functions, such as `@pairwise.dpo_loss`, by the function with its current gin values.

gin's own reference is a wrapper that looks up its values whenever it is called. An objective that holds such a wrapper computes another
loss after a later binding, and fails after `gin.clear_config()`. A bound reference passes a `functools.partial` to the object that is
constructed with it, so an objective keeps its hyperparameters.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import gin
import gin.config


class _BoundReference(gin.config.ConfigurableReference):
    """A reference to a function whose copy is the function with its bindings; gin copies references when it builds arguments."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        scope = gin.config_scope(self.scopes) if self.scopes else contextlib.nullcontext()
        with scope:
            return _bound(self.configurable)


def bind_functions(*, except_macro: str | None = None) -> None:
    """Replaces the function references of the current configuration by bound ones; call it when the configuration is complete.

    References that are evaluated (`@f()`) and references to classes stay as they are.

    Args:
      except_macro: a macro that lists functions to call later; its references also stay as they are.
    """
    for key, parameters in gin.config._CONFIG.items():
        if key == (except_macro, "gin.macro"):
            continue
        for reference in gin.config.iterate_references({key: parameters}):
            if not reference.evaluate and inspect.isfunction(reference.configurable.wrapped):
                reference.__class__ = _BoundReference


def _bound(configurable: gin.config.Configurable) -> Callable[..., Any]:
    function = configurable.wrapped
    unresolved = gin.get_bindings(function, resolve_references=False)
    _record(configurable.selector, {**_defaults(function), **unresolved})
    return functools.partial(function, **gin.get_bindings(function))


def _record(selector: str, values: dict[str, Any]) -> None:
    """Records values in the operative configuration, as gin's wrapper does when it is called."""
    key = (gin.current_scope_str(), selector)
    with gin.config._OPERATIVE_CONFIG_LOCK:
        gin.config._OPERATIVE_CONFIG.setdefault(key, {}).update(values)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the defaults of a function's hyperparameters, which are its keyword-only parameters."""
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
