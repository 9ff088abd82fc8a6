"""A gin file is code: which modules it may import, and what a dry run may call of it.

``import`` in a gin file runs a module, and ``@function()`` calls a function when the command's arguments are built. Files may
therefore import modules of jaxalign and those that the user names with ``--gin_import``, and refer to what is defined in these. That
keeps a downloaded file from calling ``os.system``; it does not make functions of jaxalign harmless with the values of a stranger.
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
    """Lets the gin files that are parsed meanwhile import these modules and what lies in them, and no others."""
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
    """Checks that everything that the configuration names is defined in an allowed module, not merely reachable through one.

    Raises:
      UsageError: naming the function or class.
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
    """What is called to build the arguments of a command and is no setting of jaxalign, by its name in gin."""
    return sorted(
        f"@{gin.config._REGISTRY.minimal_selector(name)}()"
        for name in gin_checks.called(command.selector)
        if not name.startswith("gin.")
        and not is_setting(gin.config._REGISTRY[name].wrapped, (*ALWAYS, command.module))
    )


def is_setting(target: Any, modules: Sequence[str] = ALWAYS) -> bool:
    """Whether calling this only makes an object that holds values: a dataclass of these modules, or an optimizer of jaxalign."""
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
