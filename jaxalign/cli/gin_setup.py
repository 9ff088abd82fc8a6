"""Reads gin files and bindings for a command, and reports every error in one line.

gin is used with dynamic registration: files import the modules whose functions they configure, and the
library itself has no gin decorators. Bindings from the command line may use the shortest name that is
unique (`train.batch_size`, `DROV.temperature`), even if no file has mentioned the function.
"""

import contextlib
import copy
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import gin
import gin.config

from jaxalign import files
from jaxalign.cli import (
    gin_binding,
    gin_checks,
    gin_imports,
    gin_rebuilding,
    gin_settings,
    t5x_names,
)
from jaxalign.cli.commands import COMMANDS, Command, Signature, UsageError
from jaxalign.cli.flags import Flags, did_you_mean
from jaxalign.cli.gin_errors import explained

# A command that saves its configuration has this parameter, a function that returns the text.
_CONFIGURATION = "configuration"


def gin_config_paths() -> list[str]:
    """Returns the folders in which gin files are searched: the current one, then jaxalign's own `gin_configs`.

    The parent of `gin_configs` is included, so `gin_configs/runs/finetune.gin` and `runs/finetune.gin` name the
    same file from any folder, both in a checkout and in an installed package.
    """
    folder = files.gin_configs()
    return [""] if folder is None else ["", str(folder.parent), str(folder)]


def configure(flags: Flags, command: Command, signature: Signature) -> Callable[..., Any]:
    """Reads the configuration of a command and checks it before anything is computed.

    Plain flags become gin bindings of the command's function, so the operative configuration records them.

    Returns:
      The command's function with its parameters bound.

    Raises:
      UsageError: the configuration is invalid; the message names the file and line, the flag or the binding.
    """
    gin.clear_config()
    # gin can only add search paths. The user's paths must come before ours, and none may remain from an earlier call.
    _read_plain_files_only()
    gin.config._LOCATION_PREFIXES[:] = [*flags.gin_search_paths, *gin_config_paths()]
    function = getattr(importlib.import_module(command.module), command.function)
    gin_settings.register(function, command.module)
    modules = (*gin_imports.ALWAYS, command.module, *flags.gin_import)
    _import(flags.gin_import)
    for file in flags.gin_file:
        _parse_file(file, modules)
    if command.model_file and ("MODEL", "gin.macro") in gin.config._CONFIG:
        _parse_file(command.model_file, modules)
    gin_settings.apply(flags.settings)
    selector = command.selector
    also_used = _take_bindings(command, signature)
    for name, value in flags.parameters.items():
        gin_settings.bind_parameter(selector, name, value)
    gin_settings.expand_home()
    gin_imports.check_origin(modules)
    gin_checks.check_cycles()
    gin_checks.check(
        selector, flags.settings, also_used=also_used, with_tasks=command.registers_tasks
    )
    gin_binding.bind_functions(except_macro=gin_checks.REGISTER_TASKS)
    required = [name for name, parameter in signature.parameters.items() if parameter.required]
    bound = gin.config._CONFIG.get(("", selector), {})
    missing = [f"--{name}" for name in required if name not in bound]
    if missing:
        raise UsageError(_missing_text(command, missing))
    _set_data_folders(flags)
    return gin.get_configurable(function)


def _missing_text(command: Command, missing: list[str]) -> str:
    if "--objective" in missing:
        # A command whose arguments are objects, which gin files build.
        return (
            f"{command.name} needs a configuration: --gin_file=FILE (`jaxalign inspect` writes one for your data, and "
            f"gin_configs/experiments has others) and its macros, such as --MODEL_DIR=runs/x; see jaxalign {command.name} --help"
        )
    return f"{command.name} needs {' and '.join(missing)}; see jaxalign {command.name} --help"


def _take_bindings(command: Command, signature: Signature) -> str | None:
    """Copies the bindings of the command that this one is configured as, and sets the macros that this one does not require.

    Returns:
      The full name of the other command's function, or None.
    """
    if command.configured_as is None:
        return None
    source = COMMANDS[command.configured_as]
    config = gin.config._CONFIG
    with gin.unlock_config():
        for name, placeholder in command.dispensable.items():
            value = config.get((name, "gin.macro"), {}).get("value", gin.REQUIRED)
            if gin_checks.is_required(value) or value is gin.REQUIRED:
                gin.bind_parameter(f"{name}/gin.macro.value", placeholder)
        for name, value in config.get(("", source.selector), {}).items():
            if name in signature.parameters and name not in config.get(("", command.selector), {}):
                gin.bind_parameter(("", command.selector, name), value)
    return source.selector


def _read_plain_files_only() -> None:
    """Removes gin's second reader, for files inside Python packages.

    It logs an error for every folder that does not contain a file.
    """
    gin.config._FILE_READERS[:] = [(_open, lambda path: os.path.isfile(os.path.expanduser(path)))]


def _open(path: str) -> TextIO:
    return open(os.path.expanduser(path), encoding="utf-8")


def describe(function: Callable[..., Any], command: Command) -> str:
    """Checks a configuration without calling the command, and returns its text.

    Only settings of jaxalign are built (`gin_imports.is_setting`): their constructors compare values and do nothing else. If the
    command refers to the result of any other call, nothing is built, and a message names the calls that were not made.

    Raises:
      UserError: a class refuses a value, or a file that the command needs is missing.
    """
    others = gin_imports.called_by(command)
    if others:
        print(
            f"jaxalign: a dry run does not call {', '.join(others)}, so the values that depend on it are not checked",
            file=sys.stderr,
        )
        return gin.config_str()
    with _construction_explained():
        arguments = {**gin.get_bindings(function), **_rebuilt(command)}
    told = None
    if command.dry_run:
        told = importlib.import_module(command.dry_run).check(**arguments)
    # What the check tells stands last, because the configuration is long.
    return "\n".join([gin.config_str(), *([told] if told else [])])


def run(function: Callable[..., Any], command: Command) -> Any:
    """Registers the tasks that `REGISTER_TASKS` lists, calls the command with its gin bindings, and returns its result.

    Args:
      function: the function of the command, with its parameters bound.
      command: the command.

    Raises:
      UsageError: a class or function that the configuration refers to refuses its values.
    """
    with _construction_explained():
        if command.registers_tasks:
            for register in copy.deepcopy(gin_checks.registrations()):
                register()
        supplied = _rebuilt(command)
        if _CONFIGURATION in inspect.signature(function).parameters:
            supplied[_CONFIGURATION] = gin.operative_config_str
        return function(**supplied)


def _rebuilt(command: Command) -> dict[str, Any]:
    """Returns the argument that the command builds anew with other values of macros."""
    if not command.rebuilt:
        return {}
    return {command.rebuilt: gin_rebuilding.rebuilder(command.selector, command.rebuilt)}


@contextlib.contextmanager
def _construction_explained() -> Iterator[None]:
    """Adds the name of the class or function that refused its values to errors from objects that gin builds for the command.

    gin builds arguments before it calls the command, and notes in each error the call that caused it. An error
    from inside the command itself carries the command's name and is not changed.
    """
    try:
        yield
    except RecursionError as error:
        raise UsageError("the configuration refers to itself: some object needs itself") from error
    except (ValueError, TypeError) as error:
        message, called, rest = str(error).partition("\n  In call to configurable '")
        name = rest.partition("'")[0]
        if not called or name in {command.function for command in COMMANDS.values()}:
            raise
        where = "" if message.startswith(f"{name}.") else f"{name}: "
        raise UsageError(f"{where}{_with_macro(message, name)}") from error


def _with_macro(message: str, configurable: str) -> str:
    """Names the macro that set a parameter, as ``loop.train_steps (TRAIN_STEPS) is 0``, because users know only the macro."""
    found = re.match(r"\w+\.(\w+) is ", message)
    for (_, selector), bound in gin.config._CONFIG.items():
        if found and selector.rpartition(".")[2] == configurable:
            macro = gin_settings.macro_of(bound.get(found.group(1)))
            if macro:
                return message.replace(" is ", f" ({macro}) is ", 1)
    return message


def _set_data_folders(flags: Flags) -> None:
    if flags.tfds_data_dir or flags.seqio_additional_cache_dirs:
        import seqio

        if flags.tfds_data_dir:
            seqio.set_tfds_data_dir_override(flags.tfds_data_dir)
        seqio.add_global_cache_dirs(flags.seqio_additional_cache_dirs)


def _import(modules: Sequence[str]) -> None:
    """Imports the user's modules also if no gin file does: one may register a family of networks that a run folder names."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"--gin_import={module}: {error}; is its folder on PYTHONPATH?"
            ) from error


def _parse_file(file: str, modules: Sequence[str]) -> None:
    if not any(Path(prefix, file).is_file() for prefix in gin.config._LOCATION_PREFIXES):
        known = sorted(
            str(path.relative_to(folder))
            for folder in gin_config_paths()[2:]
            for path in Path(folder).rglob("*.gin")
        )
        hint = did_you_mean(file.removeprefix("gin_configs/"), known)
        raise UsageError(f"gin file {file} not found{hint}")
    try:
        with explained(file), gin_imports.allowing(modules):
            gin.parse_config_file(file)
    except UsageError as error:
        raise UsageError(f"{error}{_advice_on_file(file)}") from error


def _advice_on_file(file: str) -> str:
    """Returns the equivalents of T5X names in a file that could not be read."""
    found = next(p for p in gin.config._LOCATION_PREFIXES if Path(p, file).is_file())
    told = t5x_names.advice_on_file(Path(found, file).read_text(encoding="utf-8", errors="replace"))
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return f". {'; '.join(told[:3])}{more}" if told else ""
