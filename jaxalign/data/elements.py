"""An element of a data file: a piece of text that should be one JSON value, or a row of a table."""

from __future__ import annotations

from typing import Any, NamedTuple


class Unreadable(ValueError):
    """An element that cannot be read; the message says why."""


class Element(NamedTuple):
    """Line (or row) number, text, and the value where it is known already; `problem` says why there is none."""

    line: int
    text: str
    value: Any = None
    problem: str = ""
