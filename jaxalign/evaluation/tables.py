"""Makes text and Markdown tables, without dependencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def format_cell(value: Any, digits: int = 3) -> str:
    """Formats numbers with `digits` decimals (integers unchanged), NaN and None as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:z.{digits}f}"


def format_interval(mean: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """Returns text such as `0.789 [0.760, 0.815]`, without the interval if there is none (None or NaN)."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return f"{mean:z.{digits}f}"
    return f"{mean:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]"


def format_spread(mean: float, spread: float | None, digits: int = 3) -> str:
    """Returns text such as `0.789 ± 0.012`, without the spread if it is undefined (a single seed)."""
    if spread is None or math.isnan(spread):
        return f"{mean:z.{digits}f}"
    return f"{mean:z.{digits}f} ± {spread:.{digits}f}"


def _cells(rows: Sequence[Row], columns: Sequence[str], digits: int) -> list[list[str]]:
    return [[format_cell(row.get(column), digits) for column in columns] for row in rows]


def _columns(rows: Sequence[Row], columns: Sequence[str] | None) -> list[str]:
    """Returns the requested columns, or every key in order of first appearance."""
    return list(columns) if columns else list(dict.fromkeys(key for row in rows for key in row))


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit() or cell[:2].lstrip("-+.")[:1].isdigit()


def text_table(
    rows: Sequence[Row], columns: Sequence[str] | None = None, *, digits: int = 3
) -> str:
    """Returns aligned plain text: a header, a rule, and one line for each row; text is left-aligned and numbers right-aligned."""
    names = _columns(rows, columns)
    cells = _cells(rows, names, digits)
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    right = [bool(cells) and all(_is_number(line[i]) for line in cells) for i in range(len(names))]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), "  ".join("-" * w for w in widths), *map(line, cells)])


def markdown_table(
    rows: Sequence[Row], columns: Sequence[str] | None = None, *, digits: int = 3
) -> str:
    """Returns a Markdown table of the same content; pipes inside cells are escaped."""
    names = _columns(rows, columns)
    cells = _cells(rows, names, digits)
    right = [bool(cells) and all(_is_number(line[i]) for line in cells) for i in range(len(names))]

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    rule = "|" + "|".join("---:" if r else "---" for r in right) + "|"
    return "\n".join([line(names), rule, *map(line, cells)])
