"""Plug-ins that a command line or a gin file names: `name`, `name:argument`, `name:key=value,key=value`, or `module:function`.

Annotators and selectors are found by this syntax. For judges and extractors of features, all text after the colon is one argument.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import typing
from collections.abc import Callable, Container, Mapping
from typing import Any, Generic, TypeVar

from jaxalign.errors import UserError

PlugIn = TypeVar("PlugIn")
_Factory = TypeVar("_Factory", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Spec:
    """The parts of a plug-in's specification.

    Attributes:
      name: the name of the plug-in, or a module.
      argument: the text after the colon if it is not a list of settings; empty otherwise.
      settings: the settings `key=value`, as text.
    """

    name: str
    argument: str = ""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse_spec(text: str) -> Spec:
    """Splits a specification into its parts.

    Raises:
      UserError: a part after the first setting has no `=`.

    >>> parse_spec("best_worst:annotation=judge,min_margin=0.1").settings
    {'annotation': 'judge', 'min_margin': '0.1'}
    """
    name, _, rest = text.partition(":")
    if "=" not in rest:
        return Spec(name.strip(), rest.strip())
    settings = {}
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"{text!r}: {part!r} must be written key=value, because the other settings are"
            )
        settings[key.strip()] = value.strip()
    return Spec(name.strip(), "", settings)


class Registry(Generic[PlugIn]):
    """Plug-ins of one subject by name. A factory takes keyword arguments and returns the plug-in.

    Args:
      subject: what the plug-ins are, for messages, such as "annotator".
      wrap: makes a plug-in of a user's own function, as (name, function) -> plug-in.
      settings: whether the text after the colon may be a list of settings. If not, all of it is passed to the factory, '' by default.
    """

    def __init__(
        self,
        subject: str,
        wrap: Callable[[str, Callable[..., Any]], PlugIn],
        *,
        settings: bool = True,
    ) -> None:
        self.subject = subject
        self._has_settings = settings
        self._wrap = wrap
        self._factories: dict[str, Callable[..., PlugIn]] = {}

    def register(self, name: str) -> Callable[[_Factory], _Factory]:
        """Returns a decorator that registers a factory, a class or a function, under a name."""

        def add(factory: _Factory) -> _Factory:
            if name in self._factories:
                raise ValueError(f"the {self.subject} {name!r} is registered already")
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        """Returns the names of the registered plug-ins."""
        return sorted(self._factories)

    def __contains__(self, name: str) -> bool:
        return name in self._factories

    def build(self, spec: str, **overrides: Any) -> PlugIn:
        """Returns the plug-in of a specification. Settings become the types of the factory's annotations.

        Args:
          spec: see the docstring of the module. A plain argument sets the first parameter.
          **overrides: further arguments of the factory.

        Raises:
          UserError: an unknown name or setting, a value of another type, or a module that cannot be imported.
        """
        name, _, text = spec.partition(":")
        parts = parse_spec(spec) if self._has_settings else Spec(name, text)
        factory = self._factories.get(parts.name)
        if factory is None:
            return self._own(spec, parts)
        if not self._has_settings:
            return factory(text, **overrides)
        parameters = inspect.signature(factory).parameters
        settings = dict(parts.settings)
        if parts.argument:
            if not parameters:
                raise UserError(
                    f"{self.subject} {parts.name!r} takes no argument, got {parts.argument!r}"
                )
            settings[next(iter(parameters))] = parts.argument
        unknown = [name for name in settings if name not in parameters]
        if unknown:
            known = ", ".join(parameters) or "none"
            raise UserError(
                f"{self.subject} {parts.name!r} has no setting {unknown[0]!r}; its settings: {known}"
            )
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty and name not in {**settings, **overrides}
        ]
        if missing:
            raise UserError(
                f"{self.subject} {parts.name!r} needs {missing[0]}: {parts.name}:{missing[0]}=..."
            )
        types = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
        values = {
            name: _converted(value, types.get(name, str), f"{self.subject} {parts.name!r}", name)
            for name, value in settings.items()
        }
        return factory(**values, **overrides)

    def _own(self, spec: str, parts: Spec) -> PlugIn:
        if not parts.argument:
            raise UserError(
                f"no {self.subject} named {parts.name!r}: use one of {', '.join(self.names())}, or module:function"
            )
        return self._wrap(parts.argument, import_function(self.subject, spec))


def import_function(subject: str, spec: str) -> Callable[..., Any]:
    """Returns the function of a specification `module:function`, which a user gave; never of one that a file or run folder names.

    Args:
      subject: what the function is, for messages, such as "annotator".
      spec: the specification.

    Raises:
      UserError: the module cannot be imported, or has no such function.
    """
    name, _, function_name = spec.partition(":")
    try:
        module = importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: '' and '.name'
        raise UserError(
            f"{subject} {spec!r}: cannot import module {name!r} ({error}); is its folder on PYTHONPATH?"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{subject} {spec!r}: module {name!r} has no function {function_name!r}")
    return function


def own_code(spec: str, known: Container[str]) -> str | None:
    """Returns a digest of the source of the function in a specification `module:function`; None for a plug-in with a known name."""
    parts = parse_spec(spec)
    if parts.name in known or not parts.argument.isidentifier():
        return None
    try:
        function = getattr(importlib.import_module(parts.name), parts.argument)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return source_digest(function)


def source_digest(function: Callable[..., Any]) -> str | None:
    """Returns a digest of a function's source, so that an edited function is another one; None if it has no Python source."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return None


def _converted(value: str, wanted: Any, owner: str, name: str) -> Any:
    """Converts the text of a setting to the annotated type: str, int, float, bool, or one of these or None."""
    options = [option for option in typing.get_args(wanted) if option is not type(None)]
    if type(None) in typing.get_args(wanted) and value == "None":
        return None
    kind = options[0] if options else wanted
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
        return kind(value) if kind in (int, float) else value
    except (ValueError, KeyError):
        raise UserError(f"{owner}: {name} is {value!r}, which is not {_article(kind)}") from None


def _article(kind: type) -> str:
    return {int: "an integer", float: "a number", bool: "true or false"}.get(kind, kind.__name__)
