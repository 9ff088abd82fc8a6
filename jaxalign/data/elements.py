"""An element of a data file: a text that should be one JSON value, or a row of a table."""

from __future__ import annotations

from typing import Any, NamedTuple


class Unreadable(ValueError):
    """An element that cannot be read; the message gives the reason."""


class Element(NamedTuple):
    """A line (or row) number, its text, and its value if already known; `problem` is the reason why there is no value."""

    line: int
    text: str
    value: Any = None
    problem: str = ""
