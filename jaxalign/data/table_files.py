"""Reads the rows of CSV, TSV and Parquet files."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from jaxalign.data.elements import Element
from jaxalign.data.rejections import DataError
from jaxalign.errors import first_line

_COLUMN_NAME = re.compile(r"[^\W\d][\w .\-/]{0,63}")
# Columns of a table whose cells may be JSON lists or objects, written as text.
_JSON_COLUMNS = re.compile(
    r"(responses|scores|feedback|reference_feedback|messages|conversations|completions|human_labels"
    r"|prompt|chosen|rejected|completion)(\..*)?"
)


def is_header(line: str, delimiter: str) -> bool:
    """Returns whether a line names columns: several different names."""
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return False
    named = all(map(_COLUMN_NAME.fullmatch, cells))
    return len(cells) > 1 and named and len(set(cells)) == len(cells)


def table(lines: Iterable[Element], delimiter: str, path: str, name: str) -> Iterator[Element]:
    """Yields rows of CSV or TSV as dictionaries; an empty cell has no value, `scores.x` is the field x of the object `scores`."""
    csv.field_size_limit(1 << 30)
    position, undecodable = 1, ""

    def texts() -> Iterator[str]:
        nonlocal position, undecodable
        for element in lines:
            position, undecodable = element.line, undecodable or element.problem
            yield element.text.replace("\0", "\ufffd")

    rows = csv.reader(texts(), delimiter=delimiter, strict=True)
    header = [cell.strip() for cell in next(rows)]
    while True:
        start = position + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Element(start, "", problem=f"not valid {name} ({error})")
            continue
        if not any(map(str.strip, cells)):
            continue
        shown = delimiter.join(cells)
        problem, undecodable = undecodable, ""
        if len(cells) > len(header):
            problem = f"the row has {len(cells)} cells, the header {len(header)}"
        if problem:
            yield Element(start, shown, problem=problem)
            continue
        yield Element(start, shown, _row(itertools.zip_longest(header, cells, fillvalue="")))


def _row(cells: Iterable[tuple[str, str]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, cell in cells:
        if not cell.strip():
            continue
        value: Any = cell
        if cell.lstrip()[:1] in "[{" and _JSON_COLUMNS.fullmatch(name):
            value = _json_cell(name, cell)
        outer, dot, inner = name.partition(".")
        if dot and outer == "scores":
            row.setdefault(outer, {})[inner] = value
        else:
            row[name] = value
    return row


def _json_cell(name: str, cell: str) -> Any:
    """Returns the list or object in a cell; a text that only looks like one stays text."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    texts = ("prompt", "chosen", "rejected", "completion")
    if name in texts and not (isinstance(value, list) and all(isinstance(x, dict) for x in value)):
        return cell
    return value


def parquet_rows(file: BinaryIO, path: str) -> Iterator[Element]:
    """Yields the rows of a Parquet file.

    Raises:
      DataError: pyarrow is missing, or the file is damaged.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow; or save it as JSON Lines."
        ) from None
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                value = _plain(row)
                yield Element(number, json.dumps(value, ensure_ascii=False, default=str), value)
    except ArrowException as error:
        reason = first_line(error)
        raise DataError(f"{path} is not a Parquet file that can be read: {reason}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
