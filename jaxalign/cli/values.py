"""Converts the text after the `=` of a flag to a value, given the annotation of the parameter that gets it."""

import ast
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxalign.cli.commands import Parameter, UsageError

_TRUE = ("true", "1", "yes", "t", "y")
_FALSE = ("false", "0", "no", "f", "n")
_SEQUENCE = re.compile(r"(?:list|tuple|Sequence|Iterable)\[(.*?)(?:, \.\.\.)?\]")
_MAPPING = re.compile(r"(?:dict|Mapping)\[(\w+), (.*)\]")
_LITERAL = re.compile(r"(?:typing\.)?Literal\[(.*)\]")
_TEXT = ("str", "Path", "os.PathLike")
_HOME = re.compile(r"(^|[=:,])~(?=/|$)")
_ABSENT = object()


def alternatives(annotation: str) -> list[str]:
    """Returns the members of a union annotation, split only at the outermost bars."""
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


def fits(value: Any, annotation: str) -> bool:
    """Returns whether a value matches an annotation; True if the annotation is not made of plain types."""
    return any(_fits_one(value, kind) for kind in alternatives(annotation))


def _fits_one(value: Any, kind: str) -> bool:
    plain = {
        "None": value is None,
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        **dict.fromkeys(_TEXT, isinstance(value, str)),
    }
    if kind in plain:
        return plain[kind]
    if sequence := _SEQUENCE.fullmatch(kind):
        is_one = isinstance(value, (list, tuple))
        # The annotation of a tuple of several types has commas.
        return is_one and (
            "," in sequence.group(1) or all(fits(item, sequence.group(1)) for item in value)
        )
    if mapping := _MAPPING.fullmatch(kind):
        return isinstance(value, dict) and all(
            fits(key, mapping.group(1)) and fits(item, mapping.group(2))
            for key, item in value.items()
        )
    if literal := _LITERAL.fullmatch(kind):
        return value in ast.literal_eval(f"({literal.group(1)},)")
    return True


def parse_value(parameter: Parameter, text: str) -> Any:
    """Converts the text of a command's own flag to a value of the parameter's type.

    Raises:
      UsageError: the text is not of that type, or the parameter's type cannot be written as a flag.
    """
    kinds = alternatives(parameter.annotation)
    value = _as_word(text, kinds)
    if value is not _ABSENT:
        return value
    flag = f"--{parameter.name}={text}"
    for kind in kinds:
        if choices := _LITERAL.fullmatch(kind):
            allowed = ast.literal_eval(f"({choices.group(1)},)")
            raise UsageError(f"{flag} is not one of {', '.join(map(str, allowed))}")
    if "bool" in kinds:
        raise UsageError(f"{flag} is not a boolean: write true or false")
    if any(kind in ("int", "float") or _SEQUENCE.fullmatch(kind) for kind in kinds):
        raise UsageError(f"{flag} is not of type {' or '.join(k for k in kinds if k != 'None')}")
    raise UsageError(
        f"--{parameter.name} cannot be given as a plain flag; set it in a gin file or with --gin."
    )


def parse_setting(text: str, annotations: Sequence[str]) -> Any:
    """Converts the text of a macro's flag, or of a gin parameter's flag, to the value that all its readers take.

    A matching Python literal is used as it is, so quoted text loses its quotes. Next come words: ``true``, ``none``, lists with commas,
    and text, which needs no quotes. A literal that matches nothing is returned unchanged, so that the check of types refuses it.

    Args:
      text: the text after the `=`.
      annotations: the annotations of the parameters that read the value; empty if nothing is known of them.
    """
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal = _ABSENT
    if literal is not _ABSENT and all(fits(literal, annotation) for annotation in annotations):
        return literal
    if isinstance(literal, (list, tuple, dict, set)):
        return literal
    for annotation in annotations:
        word = _as_word(text, alternatives(annotation))
        if word is not _ABSENT and all(fits(word, other) for other in annotations):
            return word
    return text if literal is _ABSENT else literal


def _as_word(text: str, kinds: Sequence[str]) -> Any:
    """Converts text without Python's quotes and brackets to a value of one of these kinds; ``_ABSENT`` if none matches."""
    if "None" in kinds and text.lower() == "none":
        return None
    # Numbers are tried before text, so that `int | str` reads digits as a number.
    for kind in sorted(kinds, key=lambda kind: kind in _TEXT):
        element = _SEQUENCE.fullmatch(kind)
        choices = _LITERAL.fullmatch(kind)
        try:
            if kind in _TEXT:
                return text
            if kind in ("int", "float"):
                return {"int": int, "float": float}[kind](text)
            if kind == "bool":
                return parse_bool(text)
            if element and element.group(1) in ("str", "int", "float"):
                convert = {"str": str, "int": int, "float": float}[element.group(1)]
                return [convert(part) for part in split_list(text)]
            if choices and text in ast.literal_eval(f"({choices.group(1)},)"):
                return text
        except ValueError:
            continue
    return _ABSENT


def parse_bool(text: str) -> bool:
    """Returns the boolean for one of the usual spellings.

    Raises:
      ValueError: the text is not such a spelling.
    """
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def split_list(text: str) -> list[str]:
    """Splits at commas, except inside an existing path, alone or after ``name=``."""
    parts = text.split(",")
    found = []
    while parts:
        length = next(n for n in range(len(parts), 0, -1) if n == 1 or _is_path(parts[:n]))
        found.append(",".join(parts[:length]))
        parts = parts[length:]
    return [part for part in found if part]


def _is_path(parts: Sequence[str]) -> bool:
    text = ",".join(parts)
    paths = [text, text.partition("=")[2]] if "=" in parts[0] else [text]
    return any(path and os.path.exists(os.path.expanduser(path)) for path in paths)


def expand_home(value: Any) -> Any:
    """Replaces ``~`` at the start of a path, also after ``name=``, by the home folder, in lists and mappings too."""
    if isinstance(value, str):
        home = str(Path.home())
        return _HOME.sub(lambda match: match.group(1) + home, value) if "~" in value else value
    if isinstance(value, (list, tuple)):
        return type(value)(expand_home(item) for item in value)
    if isinstance(value, dict):
        return {key: expand_home(item) for key, item in value.items()}
    return value


def readable(annotations: Iterable[str]) -> str:
    """Returns annotations in words, for messages."""
    names = {"str": "text", "bool": "True or False", "int": "a whole number", "float": "a number"}
    kinds = dict.fromkeys(kind for annotation in annotations for kind in alternatives(annotation))
    return " or ".join(names.get(kind, kind) for kind in kinds)
