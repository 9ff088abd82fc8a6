"""From argument strings to flag values: T5X's gin flags, and a plain flag per parameter of the command."""

import ast
import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

from jaxalign.cli.commands import Parameter, Signature, UsageError

GIN_PREFIX = "gin."
COMMON_FLAGS = {
    "gin_file": "a gin file; may be repeated, later files win",
    "gin.NAME": "bind a gin macro or parameter after all files, for example --gin.TRAIN_STEPS=100 "
    "or --gin.MODEL_DIR=\"'runs/x'\" (strings in quotes)",
    "gin_bindings": 'the same as a statement: --gin_bindings="NAME = VALUE"; may be repeated',
    "gin_search_paths": "folders, separated by commas, in which gin files are looked up first",
    "tfds_data_dir": "where TensorFlow Datasets keeps its data",
    "seqio_additional_cache_dirs": "folders, separated by commas, with seqio caches",
    "coordinator_address": "of a job of several processes (train): host:port of the first one, if it is not found by itself",
    "num_processes": "how many processes the job has",
    "process_id": "which of them this one is, from 0",
    "dry_run": "check everything in the configuration, print it, and stop",
    "verbose": "show the full traceback of an error",
    "help": "this text",
}
_LISTS = ("gin_file", "gin_bindings", "gin_search_paths", "seqio_additional_cache_dirs")
_NUMBERS = ("num_processes", "process_id")
_SWITCHES = ("dry_run", "verbose", "help")
_TRUE = ("true", "1", "yes", "t", "y")
_FALSE = ("false", "0", "no", "f", "n")


@dataclasses.dataclass
class Flags:
    """What a command line asked for.

    Attributes:
      gin_files: files to read, in order.
      gin_bindings: statements ``NAME = VALUE`` to apply after the files, in order.
      parameters: values of plain flags by parameter name.
    """

    gin_files: list[str] = dataclasses.field(default_factory=list)
    gin_bindings: list[str] = dataclasses.field(default_factory=list)
    gin_search_paths: list[str] = dataclasses.field(default_factory=list)
    tfds_data_dir: str | None = None
    seqio_additional_cache_dirs: list[str] = dataclasses.field(default_factory=list)
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    dry_run: bool = False
    verbose: bool = False
    help: bool = False
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)


def parse_flags(arguments: Sequence[str], signature: Signature) -> Flags:
    """Reads the arguments after the command's name.

    ``--name=value`` and ``--name value`` are the same; a boolean may stand alone, or be denied as ``--noname``;
    a list is separated by commas or given by repetition.

    Raises:
      UsageError: on an unknown flag, a value of the wrong type, or an argument that is not a flag.
    """
    flags = Flags()
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
            _add_gin_binding(flags, argument, given)
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
        _store(flags, name, given, signature)
    return flags


def _resolve(name: str, signature: Signature) -> tuple[str, bool]:
    """The flag that a spelling means, and whether it was denied by a leading ``no``."""
    known = [*(flag for flag in COMMON_FLAGS if "." not in flag), *signature.parameters]
    if name in known:
        return name, False
    if name.startswith("no") and name[2:] in known and _takes_no_value(name[2:], signature):
        return name[2:], True
    raise UsageError(f"unknown flag --{name}{did_you_mean(name, known, prefix='--')}")


def _takes_no_value(name: str, signature: Signature) -> bool:
    if name in _SWITCHES:
        return True
    parameter = signature.parameters.get(name)
    return parameter is not None and alternatives(parameter.annotation)[0] == "bool"


def _add_gin_binding(flags: Flags, argument: str, value: str | None) -> None:
    name = argument[2:].partition("=")[0].removeprefix(GIN_PREFIX)
    if value is None or not name:
        raise UsageError(f"{argument} needs a name and a value: --gin.NAME=VALUE")
    flags.gin_bindings.append(f"{name} = {value}")


def _store(flags: Flags, name: str, value: str, signature: Signature) -> None:
    if name == "gin_file":
        flags.gin_files.append(value)
    elif name == "gin_bindings":
        flags.gin_bindings.append(value)
    elif name in _LISTS:
        getattr(flags, name).extend(part for part in value.split(",") if part)
    elif name in _SWITCHES:
        setattr(flags, name, _parse_bool(name, value))
    elif name in _NUMBERS:
        if not value.isdigit():
            raise UsageError(f"--{name}={value} is not a number")
        setattr(flags, name, int(value))
    elif name == "coordinator_address":
        flags.coordinator_address = value
    elif name == "tfds_data_dir" and name not in signature.parameters:
        flags.tfds_data_dir = value
    else:
        parsed = parse_value(signature.parameters[name], value)
        earlier = flags.parameters.get(name)
        if isinstance(parsed, list) and isinstance(earlier, list):
            parsed = earlier + parsed
        flags.parameters[name] = parsed


def parse_value(parameter: Parameter, text: str) -> Any:
    """A flag's text as a value of the parameter's type.

    Raises:
      UsageError: if it is not of that type, or the parameter's type cannot be written as a flag.
    """
    kinds = alternatives(parameter.annotation)
    if "None" in kinds and text.lower() == "none":
        return None
    # Numbers before text, so that `int | str` reads digits as a number.
    for kind in sorted(kinds, key=lambda kind: kind == "str"):
        element = re.fullmatch(
            r"(?:list|Sequence|tuple|Iterable)\[(str|int|float)(?:, \.\.\.)?\]", kind
        )
        choices = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind)
        try:
            if kind in ("str", "Path", "os.PathLike"):
                return text
            if kind in ("int", "float"):
                return {"int": int, "float": float}[kind](text)
            if kind == "bool":
                return _parse_bool(parameter.name, text)
            if element:
                convert = {"str": str, "int": int, "float": float}[element.group(1)]
                return [convert(part) for part in text.split(",") if part]
            if choices and text in (allowed := ast.literal_eval(f"({choices.group(1)},)")):
                return text
            if choices:
                raise UsageError(
                    f"--{parameter.name}={text} is not one of {', '.join(map(str, allowed))}"
                )
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            continue
    if any(kind in ("int", "float", "bool") or "[" in kind for kind in kinds):
        expected = " or ".join(kind for kind in kinds if kind != "None")
        if not _only_gin(parameter.annotation):
            raise UsageError(f"--{parameter.name}={text} is not of type {expected}")
    raise UsageError(
        f"--{parameter.name} cannot be given as a plain flag; set it in a gin file or with --gin."
    )


def _only_gin(annotation: str) -> bool:
    simple = re.compile(
        r"str|Path|os\.PathLike|int|float|bool|None|(?:typing\.)?Literal\[.*\]"
        r"|(?:list|Sequence|tuple|Iterable)\[(?:str|int|float)(?:, \.\.\.)?\]"
    )
    return not any(simple.fullmatch(kind) and kind != "None" for kind in alternatives(annotation))


def alternatives(annotation: str) -> list[str]:
    """The members of a union annotation, outermost bars only."""
    text = annotation.strip("'\" ")
    optional = re.fullmatch(r"(?:typing\.)?Optional\[(.*)\]", text)
    if optional:
        return [*alternatives(optional.group(1)), "None"]
    parts, depth, current = [], 0, ""
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "|" and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [part.strip() for part in [*parts, current]]


def _parse_bool(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise UsageError(f"--{name}={text} is not a boolean: write true or false")


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """A question with the most similar known name, or nothing."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""
