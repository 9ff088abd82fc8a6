"""Typed reading of the fields of a parsed ``config.json``: a field of another type is refused by its name.

In all functions, `where` is the path of the object that holds the field, such as ``encoder.text_config``, and empty for the whole file.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

Fields = Mapping[str, Any]
_LARGEST = 2**31 - 1


def integer(fields: Fields, name: str, where: str = "", default: int | None = None) -> int:
    """Returns a whole number.

    Raises:
      ValueError: the field is missing and there is no default, or it is no whole number of 32 bits.
    """
    if name not in fields and default is None:
        raise ValueError(f"{place(name, where)} is missing.")
    given = fields.get(name, default)
    if not _is_number(given, int) or abs(given) > _LARGEST:
        raise _wrong(given, name, where, "a whole number of 32 bits")
    return int(given)


def number(fields: Fields, name: str, where: str = "", default: float | None = None) -> float:
    """Returns a number.

    Raises:
      ValueError: the field is missing and there is no default, or it is no finite number.
    """
    if name not in fields and default is None:
        raise ValueError(f"{place(name, where)} is missing.")
    given = fields.get(name, default)
    if not _is_number(given, int | float) or not abs(given) <= sys.float_info.max:
        raise _wrong(given, name, where, "a finite number")
    return float(given)


def boolean(fields: Fields, name: str, default: bool) -> bool:
    """Returns a truth value of the whole file.

    Raises:
      ValueError: the field is neither true nor false.
    """
    given = fields.get(name, default)
    if not isinstance(given, bool):
        raise _wrong(given, name, "", "true or false")
    return given


def mapping(fields: Fields, name: str, where: str = "") -> Fields:
    """Returns an object, which is empty if the field is missing or null.

    Raises:
      ValueError: the field is no object.
    """
    given = fields.get(name)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _wrong(given, name, where, "an object")
    return given


def items(fields: Fields, name: str, where: str = "") -> list[Any] | None:
    """Returns a list; None if the field is missing or null.

    Raises:
      ValueError: the field is no list.
    """
    given = fields.get(name)
    if given is not None and not isinstance(given, list):
        raise _wrong(given, name, where, "a list")
    return given


def require_known(fields: Fields, known: Collection[str], where: str) -> None:
    """Raises ValueError if the object has a field that is not known."""
    for name in fields:
        if name not in known:
            raise ValueError(f"{where} has {name!r}; jaxalign reads {', '.join(known)} only.")


def place(name: str, where: str) -> str:
    """Returns the path of a field."""
    return f"{where}.{name}" if where else name


def _is_number(given: Any, kind: Any) -> bool:
    return isinstance(given, kind) and not isinstance(given, bool)


def _wrong(given: Any, name: str, where: str, expected: str) -> ValueError:
    return ValueError(f"{place(name, where)} is {given!r}, not {expected}.")
