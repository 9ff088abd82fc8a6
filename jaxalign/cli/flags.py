"""Converts argument strings to flag values: T5X's gin flags, and a plain flag for each parameter of the command."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxalign.cli import config_file
from jaxalign.cli.commands import Signature, UsageError
from jaxalign.cli.values import alternatives, expand_home, parse_bool, parse_value, split_list

GIN_PREFIX = "gin."
COMMON_FLAGS = {
    "gin_file": "a gin file; may be repeated, later files win",
    "NAME": "set a macro of the gin files (its name is in capitals), for example --TRAIN_STEPS=100 or --MODEL_DIR=runs/x",
    "gin.NAME": "the same, also for parameters: --gin.DROV.temperature=0.1; wins over all files",
    "config": "a YAML file with macros, parameters and gin_file by name; flags win over it. What it becomes is printed as gin",
    "gin_bindings": 'the same as a statement: --gin_bindings="NAME = VALUE"; may be repeated',
    "gin_import": "a Python module, not of jaxalign, that gin files may import; importing runs it. May be repeated",
    "gin_search_paths": "folders, separated by commas, in which gin files are looked up first",
    "tfds_data_dir": "where TensorFlow Datasets keeps its data",
    "seqio_additional_cache_dirs": "folders, separated by commas, with seqio caches",
    "coordinator_address": "of a job of several processes (train): host:port of the first one, if it is not found by itself",
    "num_processes": "how many processes the job has",
    "process_id": "which of them this one is, from 0",
    "model_devices": "devices over which a command that computes with runs divides every copy of a network (train has MESH_TENSOR)",
    "dry_run": "check everything in the configuration, print it, and stop",
    "verbose": "show the full traceback of an error",
    "help": "this text",
}
_LISTS = ("gin_search_paths", "seqio_additional_cache_dirs")
_REPEATED = ("gin_file", "gin_import")
# Common flags that a YAML file may set too.
_OF_FILES = ("gin_file", *_LISTS, "tfds_data_dir")
_NUMBERS = ("num_processes", "process_id", "model_devices")
_SWITCHES = ("dry_run", "verbose", "help")
# One word for the same thing in every command: what a flag means where the command has no parameter of its name, the first of those
# that it has. The names of parameters, which gin files set, stay as they are.
_SAME = {
    "output": ("output_dir", "to", "model_dir", "output_name"),
    "output_dir": ("output",),
    "checkpoint": ("checkpoints", "value_checkpoint"),
    "checkpoints": ("checkpoint",),
    "input": ("file", "prompts"),
    "name": ("output_name",),
}
_MACRO = re.compile(r"[A-Z][A-Z0-9_]*")


class Setting(NamedTuple):
    """A gin macro or parameter set on the command line.

    Attributes:
      key: ``NAME`` of a macro, or ``function.parameter``.
      text: the value as typed.
      flag: the flag as typed, without its value, for messages.
    """

    key: str
    text: str
    flag: str


@dataclasses.dataclass
class Flags:
    """The flags that a command line sets.

    Attributes:
      gin_file: the files to read, in order.
      gin_import: the modules that these files may import in addition to those of jaxalign.
      settings: the macros and gin parameters to set after the files, in order.
      parameters: the values of plain flags by parameter name.
      config_as_gin: the settings of ``--config`` files, as lines of gin.
    """

    gin_file: list[str] = dataclasses.field(default_factory=list)
    gin_import: list[str] = dataclasses.field(default_factory=list)
    settings: list[Setting] = dataclasses.field(default_factory=list)
    gin_search_paths: list[str] = dataclasses.field(default_factory=list)
    tfds_data_dir: str | None = None
    seqio_additional_cache_dirs: list[str] = dataclasses.field(default_factory=list)
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    model_devices: int | None = None
    dry_run: bool = False
    verbose: bool = False
    help: bool = False
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    config_as_gin: list[str] = dataclasses.field(default_factory=list)


def parse_flags(arguments: Sequence[str], signature: Signature) -> Flags:
    """Reads the arguments after the command's name.

    ``--name=value`` and ``--name value`` are equivalent. A boolean flag may have no value, or be negated as ``--noname``.
    A list is separated by commas or given by repeating the flag.

    Raises:
      UsageError: a flag is unknown, a value has the wrong type, or an argument is not a flag.
    """
    flags, configs = Flags(), []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "-h":
            argument = "--help"
        if not argument.startswith("--"):
            raise UsageError(
                f"unexpected argument {argument!r}; every setting is written --name=value"
            )
        name, equals, value = argument[2:].partition("=")
        given: str | None = value if equals else None
        if name.startswith(GIN_PREFIX):
            _add_gin_setting(flags, argument, given)
            continue
        if _MACRO.fullmatch(name):
            if given is None and queue and not queue[0].startswith("--"):
                given = queue.pop(0)
            if given is None:
                raise UsageError(f"--{name} needs a value: --{name}=...")
            flags.settings.append(Setting(name, given, f"--{name}"))
            continue
        name, denied = _resolve(name.replace("-", "_"), signature)
        if denied:
            if given is not None:
                raise UsageError(f"--no{name} takes no value")
            given = "false"
        elif given is None:
            if _takes_no_value(name, signature):
                given = "true"
            elif queue and not queue[0].startswith("--"):
                given = queue.pop(0)
            else:
                raise UsageError(f"--{name} needs a value: --{name}=...")
        if name == "config":
            configs.append(given)
            continue
        _store(flags, name, given, signature)
    return _with_configs(flags, configs, signature)


def passed_on(flags: Flags) -> list[str]:
    """Returns the flags that give another command the same gin files and settings."""
    return [
        *(f"--gin_search_paths={path}" for path in flags.gin_search_paths),
        *(f"--gin_import={module}" for module in flags.gin_import),
        *(f"--gin_file={file}" for file in flags.gin_file),
        *(f"--gin.{setting.key}={setting.text}" for setting in flags.settings),
        *([f"--tfds_data_dir={flags.tfds_data_dir}"] if flags.tfds_data_dir else []),
        *(f"--seqio_additional_cache_dirs={path}" for path in flags.seqio_additional_cache_dirs),
    ]


def _with_configs(flags: Flags, configs: Sequence[str], signature: Signature) -> Flags:
    """Returns the flags after the settings of YAML files, whose names are those of flags."""
    before = Flags()
    for path in configs:
        before.config_as_gin.append(f"# {path} as gin:")
        where = f"--config={path}"
        for name, value in config_file.read(path).items():
            if _MACRO.fullmatch(name) or "." in name:
                text = config_file.as_text(value)
                flag = f"{where}, {name}"
                before.settings.append(Setting(name.removeprefix(GIN_PREFIX), text, flag))
                before.config_as_gin.append(f"{name.removeprefix(GIN_PREFIX)} = {value!r}")
                continue
            name, denied = _resolve(name.replace("-", "_"), signature, where)
            if denied or (name in COMMON_FLAGS and name not in _OF_FILES):
                raise UsageError(f"{where}: {name} is given on the command line only")
            if name == "gin_file":
                files = [str(each) for each in (value if isinstance(value, list) else [value])]
                before.gin_file += expand_home(files)
                before.config_as_gin += [f"include {file!r}" for file in files]
                continue
            text = config_file.as_flag(name, value, where)
            _store(before, name, text, signature)
            before.config_as_gin.append(f"--{name}={text}")
    for name in ("gin_file", "settings", *_LISTS):
        getattr(flags, name)[:0] = getattr(before, name)
    flags.tfds_data_dir = flags.tfds_data_dir or before.tfds_data_dir
    flags.parameters = {**before.parameters, **flags.parameters}
    flags.config_as_gin = before.config_as_gin
    return flags


def _resolve(name: str, signature: Signature, where: str = "") -> tuple[str, bool]:
    """Returns the flag that a spelling means, and whether it was negated by a leading ``no``; ``where`` is the file of the name."""
    known = [*(flag for flag in COMMON_FLAGS if flag.islower() and "." not in flag)]
    known += signature.parameters
    if name in known:
        return name, False
    for other in _SAME.get(name, ()):
        if other in signature.parameters:
            return other, False
    if name.startswith("no") and name[2:] in known and _takes_no_value(name[2:], signature):
        return name[2:], True
    hint = did_you_mean(name, known, prefix="--")
    hint = hint or f"; a macro of a gin file is set by its name in capitals: --{name.upper()}=..."
    raise UsageError(
        f"{where}: unknown name {name}{hint}" if where else f"unknown flag --{name}{hint}"
    )


def other_names(name: str, signature: Signature) -> list[str]:
    """Returns the other flags that set a parameter of a command."""
    return [
        alias
        for alias, others in _SAME.items()
        if alias not in signature.parameters
        and next((other for other in others if other in signature.parameters), None) == name
    ]


def _takes_no_value(name: str, signature: Signature) -> bool:
    if name in _SWITCHES:
        return True
    parameter = signature.parameters.get(name)
    return parameter is not None and alternatives(parameter.annotation)[0] == "bool"


def _add_gin_setting(flags: Flags, argument: str, value: str | None) -> None:
    key = argument[2:].partition("=")[0].removeprefix(GIN_PREFIX)
    if value is None or not key:
        raise UsageError(f"{argument} needs a name and a value: --gin.NAME=VALUE")
    flags.settings.append(Setting(key.strip(), value, f"--gin.{key.strip()}"))


def _add_gin_statement(flags: Flags, statement: str) -> None:
    key, equals, value = (part.strip() for part in statement.partition("="))
    if not equals:
        raise UsageError(f"--gin_bindings={statement} is not of the form NAME = VALUE")
    flags.settings.append(Setting(key, value, f"--gin.{key}"))


def _store(flags: Flags, name: str, value: str, signature: Signature) -> None:
    if name == "gin_bindings":
        _add_gin_statement(flags, value)
    elif name in _REPEATED:
        getattr(flags, name).append(expand_home(value))
    elif name in _LISTS:
        getattr(flags, name).extend(expand_home(split_list(value)))
    elif name in _SWITCHES:
        setattr(flags, name, _parse_switch(name, value))
    elif name in _NUMBERS:
        if not value.isdigit():
            raise UsageError(f"--{name}={value} is not a number")
        setattr(flags, name, int(value))
    elif name == "coordinator_address":
        flags.coordinator_address = value
    elif name == "tfds_data_dir" and name not in signature.parameters:
        flags.tfds_data_dir = expand_home(value)
    else:
        parsed = parse_value(signature.parameters[name], value)
        earlier = flags.parameters.get(name)
        if isinstance(parsed, list) and isinstance(earlier, list):
            parsed = earlier + parsed
        flags.parameters[name] = parsed


def _parse_switch(name: str, text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        raise UsageError(f"--{name}={text} is not a boolean: write true or false") from None


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Returns a question with the most similar known name, or ''."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""
