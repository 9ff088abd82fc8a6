"""Restricts the modules that a gin file may import, and the functions that a dry run may call.

A gin file is code: ``import`` in a gin file runs a module, and ``@function()`` calls a function when the command's arguments are built.
Therefore files may import only modules of jaxalign and those that the user names with ``--gin_import``, and may refer only to objects
defined in these. This prevents a downloaded file from calling ``os.system``. It does not make functions of jaxalign safe with values
from an untrusted source.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import gin
import gin.config

from jaxalign.cli import gin_checks
from jaxalign.cli.commands import Command, UsageError

ALWAYS = ("jaxalign",)
_OPTIMIZERS = "jaxalign.training.optimizers"


@contextlib.contextmanager
def allowing(modules: Sequence[str]) -> Iterator[None]:
    """A context in which gin files may import these modules and their submodules, and no others."""
    context = gin.config.ParseContext
    original = context.process_import

    def process_import(self: Any, statement: Any) -> None:
        gin_feature = statement.is_from and statement.module.startswith("__gin__.")
        if not gin_feature and not _lies_in(statement.module, modules):
            raise ImportError(
                f"this file imports {statement.module}, which is not a module of jaxalign; if you trust file and module, add "
                f"--gin_import={statement.module}"
            )
        original(self, statement)

    context.process_import = process_import
    try:
        yield
    finally:
        context.process_import = original


def check_origin(modules: Sequence[str]) -> None:
    """Checks that every object that the configuration names is defined in an allowed module, not only reachable through one.

    Raises:
      UsageError: an object is defined elsewhere; the message names the function or class.
    """
    for selector in _selectors():
        target = gin.config._REGISTRY[selector].wrapped
        origin = getattr(target, "__module__", None) or "a module without a name"
        if not selector.startswith("gin.") and not _lies_in(origin, modules):
            raise UsageError(
                f"the configuration names {selector}, which is defined in {origin} and not in jaxalign; if you trust it, add "
                f"--gin_import={origin}"
            )


def called_by(command: Command) -> list[str]:
    """Returns the gin names of the functions called to build a command's arguments that are not settings of jaxalign."""
    return sorted(
        f"@{gin.config._REGISTRY.minimal_selector(name)}()"
        for name in gin_checks.called(command.selector)
        if not name.startswith("gin.")
        and not is_setting(gin.config._REGISTRY[name].wrapped, (*ALWAYS, command.module))
    )


def is_setting(target: Any, modules: Sequence[str] = ALWAYS) -> bool:
    """Returns whether a call only makes an object that holds values: a dataclass of these modules, or an optimizer of jaxalign."""
    module = getattr(target, "__module__", "") or ""
    if module == _OPTIMIZERS:
        return True
    return dataclasses.is_dataclass(target) and _lies_in(module, modules)


def _selectors() -> set[str]:
    config = gin.config._CONFIG
    referred = gin.config.iterate_references(config)
    return {selector for _, selector in config} | {r.configurable.selector for r in referred}


def _lies_in(module: str, allowed: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)
