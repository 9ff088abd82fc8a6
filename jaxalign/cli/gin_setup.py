"""Reading gin files and bindings for a command, with every problem told in one line.

gin is used with dynamic registration: files import the modules whose functions they configure, and the
library itself carries no gin decorators. Bindings from the command line may use the shortest name that is
unique (`train.batch_size`, `DROV.temperature`), whether or not a file has mentioned the function.
"""

import contextlib
import copy
import importlib
import inspect
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import gin.config

from jaxalign.cli import gin_binding, gin_checks, gin_types, t5x_names
from jaxalign.cli.commands import COMMANDS, Command, Signature, UsageError
from jaxalign.cli.flags import Flags, did_you_mean

# A command that keeps its configuration has this parameter, a function that gives the text.
_CONFIGURATION = "configuration"
_PACKAGE = Path(__file__).resolve().parent.parent
_PARSE_ERRORS = (
    SyntaxError,
    tokenize.TokenError,
    ValueError,
    LookupError,
    NameError,
    AttributeError,
    ImportError,
    OSError,
)


def gin_config_paths() -> list[str]:
    """The folders in which gin files are looked up: the current one, then jaxalign's own `gin_configs`.

    The parent of `gin_configs` is among them, so `gin_configs/runs/finetune.gin` and `runs/finetune.gin` name the
    same file from any folder, in a checkout and in an installed package alike.
    """
    for parent in (_PACKAGE.parent, _PACKAGE):
        if (parent / "gin_configs" / "models").is_dir():
            return ["", str(parent), str(parent / "gin_configs")]
    return [""]


def configure(flags: Flags, command: Command, signature: Signature) -> Callable[..., Any]:
    """Reads the configuration of a command and checks it before anything is computed.

    Plain flags become gin bindings of the command's function, so the operative configuration records them.

    Returns:
      The command's function with its parameters bound.

    Raises:
      UsageError: naming the file and line, the flag or the binding at fault.
    """
    gin.clear_config()
    # gin can only add search paths; the user's have to come before ours, and none may remain from an earlier call.
    _read_plain_files_only()
    gin.config._LOCATION_PREFIXES[:] = [*flags.gin_search_paths, *gin_config_paths()]
    function = getattr(importlib.import_module(command.module), command.function)
    _register(function, command.module)
    for file in flags.gin_files:
        _parse_file(file)
    if command.model_file and ("MODEL", "gin.macro") in gin.config._CONFIG:
        _parse_file(command.model_file)
    command_line_keys = [_bind(binding) for binding in flags.gin_bindings]
    selector = command.selector
    also_used = _take_bindings(command, signature)
    for name, value in flags.parameters.items():
        gin.bind_parameter(("", selector, name), value)
    read = gin_checks.check(
        selector, command_line_keys, also_used=also_used, with_tasks=command.registers_tasks
    )
    gin_types.check(read)
    gin_binding.bind_functions(except_macro=gin_checks.REGISTER_TASKS)
    required = [name for name, parameter in signature.parameters.items() if parameter.required]
    bound = gin.config._CONFIG.get(("", selector), {})
    missing = [f"--{name}" for name in required if name not in bound]
    if missing:
        raise UsageError(
            f"{command.name} needs {' and '.join(missing)}; see jaxalign {command.name} --help"
        )
    _set_data_folders(flags)
    return gin.get_configurable(function)


def _take_bindings(command: Command, signature: Signature) -> str | None:
    """Copies what is bound for the command that this one is configured as, and fills in what it can do without.

    Returns:
      The full name of the other command's function.
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
    """Takes away gin's second reader, for files inside Python packages, which logs an error for every folder
    where a file is not."""
    gin.config._FILE_READERS[:] = [(open, os.path.isfile)]


def describe(function: Callable[..., Any], command: Command) -> str:
    """Builds everything that the configuration refers to, without calling the command, and returns its text.

    Raises:
      UserError: if a value is refused by the function or class that it is for, or a file that the command needs is missing.
    """
    with _construction_explained():
        arguments = gin.get_bindings(function)
    if command.dry_run:
        importlib.import_module(command.dry_run).check(**arguments)
    return gin.config_str()


def run(function: Callable[..., Any], *, registers_tasks: bool = True) -> Any:
    """Registers the tasks that `REGISTER_TASKS` lists, calls the command with what gin has bound, and returns its result.

    Args:
      function: the command's, with its parameters bound.
      registers_tasks: False for a command that reads no task.

    Raises:
      UsageError: if a class or function that the configuration refers to refuses its values.
    """
    with _construction_explained():
        if registers_tasks:
            for register in copy.deepcopy(gin_checks.registrations()):
                register()
        if _CONFIGURATION in inspect.signature(function).parameters:
            return function(**{_CONFIGURATION: gin.operative_config_str})
        return function()


@contextlib.contextmanager
def _construction_explained() -> Iterator[None]:
    """Names the class or function whose values were refused, in the errors of what gin builds for the command.

    gin builds arguments before it calls the command, and notes in each error which call it came from; an error
    from inside the command itself carries the command's name and passes.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        message, called, rest = str(error).partition("\n  In call to configurable '")
        name = rest.partition("'")[0]
        if not called or name in {command.function for command in COMMANDS.values()}:
            raise
        raise UsageError(f"{name}: {message}") from error


def _set_data_folders(flags: Flags) -> None:
    if flags.tfds_data_dir or flags.seqio_additional_cache_dirs:
        import seqio

        if flags.tfds_data_dir:
            seqio.set_tfds_data_dir_override(flags.tfds_data_dir)
        seqio.add_global_cache_dirs(flags.seqio_additional_cache_dirs)


def _parse_file(file: str) -> None:
    if not any(Path(prefix, file).is_file() for prefix in gin.config._LOCATION_PREFIXES):
        known = sorted(
            str(path.relative_to(folder))
            for folder in gin_config_paths()[2:]
            for path in Path(folder).rglob("*.gin")
        )
        hint = did_you_mean(file.removeprefix("gin_configs/"), known)
        raise UsageError(f"gin file {file} not found{hint}")
    try:
        with _explained(file):
            gin.parse_config_file(file)
    except UsageError as error:
        raise UsageError(f"{error}{_advice_on_file(file)}") from error


def _advice_on_file(file: str) -> str:
    """What does the same as the names of T5X's in a file that could not be read."""
    found = next(p for p in gin.config._LOCATION_PREFIXES if Path(p, file).is_file())
    told = t5x_names.advice_on_file(Path(found, file).read_text(encoding="utf-8", errors="replace"))
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return f". {'; '.join(told[:3])}{more}" if told else ""


def _bind(binding: str) -> str:
    """Applies a ``NAME = VALUE`` statement from the command line and returns its name."""
    key, equals, value = (part.strip() for part in binding.partition("="))
    flag = f"--gin.{key}={value}"
    if not equals:
        raise UsageError(f"--gin_bindings={binding} is not of the form NAME = VALUE")
    if not re.search(r"[@%]", value):
        try:
            gin.config.parse_value(value)
        except (SyntaxError, ValueError, tokenize.TokenError):
            if re.fullmatch(r"[\w./:~ ,-]+", value):
                raise UsageError(
                    f"could not read {flag}; text needs quotes, which the shell must keep: --gin.{key}=\"'{value}'\""
                ) from None
            raise UsageError(
                f"could not read the value of {flag}; gin takes Python literals"
            ) from None
    if "." in key:
        _register_by_name(key.rpartition("/")[2].rpartition(".")[0])
    for reference in re.findall(r"@([\w./]+)", value):
        _register_by_name(reference.rpartition("/")[2])
    try:
        with _explained(flag):
            gin.parse_config(f"{key} = {value}")
    except UsageError as error:
        told = t5x_names.advice(key)
        raise error if told is None else UsageError(f"{flag}: {told}") from error
    return key


def _register(target: Any, module: str) -> None:
    """Makes a function or class configurable under its module's name, unless a gin file already did."""
    if gin.config._inverse_lookup(target) is None:
        gin.external_configurable(target, module=module)


def _register_by_name(selector: str) -> None:
    """Registers what a command-line name means, if no file has used it: `adafactor` or `optimizers.adafactor`
    when some file imported `jaxalign.training.optimizers`, or a full dotted name."""
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
                _register(target, module)
                return


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turns gin's errors, which span lines and may carry the whole configuration, into one line."""
    try:
        yield
    except UsageError:
        raise
    except _PARSE_ERRORS as error:
        raise UsageError(_explain(error, source)) from error


def _explain(error: Exception, source: str) -> str:
    if isinstance(error, SyntaxError):
        where = f"{_shortest(error.filename)}:{error.lineno}" if error.filename else source
        line = f" in {error.text.strip()!r}" if error.text else ""
        return f"{where}: {error.msg.splitlines()[0]}{line}"
    if isinstance(error, tokenize.TokenError):
        return f"{source}: {error.args[0]} at line {error.args[1][0]}; is a bracket or quote left open?"
    message = str(error).split("\n")[0]
    if isinstance(error, KeyError):
        message = message.strip("'\"")
    locations = re.findall(r'In file "([^"]*)", line (\d+)', str(error))
    # An include adds one location per level; the first is where the mistake stands.
    where = f"{_shortest(locations[0][0])}:{locations[0][1]}" if locations else source
    return f"{where}: {_reworded(message)}"


def _reworded(message: str) -> str:
    parameter = re.match(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", message)
    if parameter:
        selector, name = parameter.groups()
        hint = did_you_mean(name, gin_checks.parameters_of(selector))
        return f"{selector} has no parameter {name}{hint}"
    selector = re.match(r"No configurable matching (?:reference )?'@?([^']+)'", message)
    if selector:
        name = selector.group(1).removesuffix("()")
        known = {known.rpartition(".")[2] for known, _ in gin.config._REGISTRY.items()}
        return f"nothing is called {name}{did_you_mean(name.rpartition('.')[2], sorted(known))}"
    attribute = re.match(
        r"Couldn't resolve selector (\S+); <module '([\w.]+)'.* has no attribute (\w+)", message
    )
    if attribute:
        _, module, name = attribute.groups()
        return f"{module} has no {name}{did_you_mean(name, dir(sys.modules[module]))}"
    unopened = re.match(r"Unable to open file: (\S+)\. Searched", message)
    if unopened:
        return f"gin file {unopened.group(1)} not found"
    return message


def _shortest(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
