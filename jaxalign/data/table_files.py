"""Reads the rows of CSV, TSV, Parquet and Arrow files."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from jaxalign.data.elements import Element, Unreadable
from jaxalign.data.rejections import DataError
from jaxalign.errors import first_line

ROWS = 256  # the rows of a table that are in memory at a time
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
_COLUMN_NAME = re.compile(r"[^\W\d][\w .\-/:?()'&%#+*]{0,127}")
# Columns of a table whose cells may be JSON lists or objects, written as text.
_JSON_COLUMNS = re.compile(
    r"(responses|scores|feedback|reference_feedback|messages|conversations|completions|human_labels"
    r"|prompt|chosen|rejected|completion)(\..*)?"
)
_PRINTED_MESSAGES = re.compile(r"\[\{['\"](role|content|from|value)['\"]: ")
# A header row that names one of these is that of a table even if later lines begin with a bracket, as cells over several lines may.
_KNOWN_COLUMNS = {"prompt", "response", "responses", "completion", "chosen", "messages"}
_TEXTS = ("prompt", "chosen", "rejected", "completion")


def count_columns(line: str, delimiter: str) -> int:
    """Returns how many columns a line names, 0 if it is no header row: that has several different names."""
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return 0
    # The first column has no name where pandas wrote its index.
    named = all(map(_COLUMN_NAME.fullmatch, cells[1:] if cells[:1] == [""] else cells))
    return len(cells) if len(cells) > 1 and named and len(set(cells)) == len(cells) else 0


def names_known_columns(line: str, delimiter: str) -> bool:
    """Returns whether a line is a header row with a column that records have."""
    cells = line.split(delimiter)
    return bool(count_columns(line, delimiter)) and not _KNOWN_COLUMNS.isdisjoint(cells)


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
        try:
            value = _row(itertools.zip_longest(header, cells, fillvalue=""))
        except Unreadable as error:
            yield Element(start, shown, problem=str(error))
            continue
        yield Element(start, shown, value)


def _row(cells: Iterable[tuple[str, str]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, cell in cells:
        if not cell.strip() or not name:
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
    """Returns the list or object in a cell, as JSON or as Python writes it (pandas does); a text that only looks like one stays text.

    Raises:
      Unreadable: the cell holds a list or object in a form that cannot be read back.
    """
    is_list = name not in _TEXTS or _PRINTED_MESSAGES.match(cell)
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = _literal(cell) if is_list else None
    if value is None and is_list:
        raise Unreadable(
            f"the cell of {name!r} holds a list or object that is neither JSON nor Python, for example as numpy prints it; write the table "
            "as Parquet or JSON Lines: df.to_parquet(FILE)"
        )
    if name in _TEXTS and not (isinstance(value, list) and all(isinstance(x, dict) for x in value)):
        return cell
    return cell if value is None else value


def _literal(cell: str) -> list[Any] | dict[str, Any] | None:
    """Returns the list or object that a text in Python's notation describes, None if it is none. Nothing is executed."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(cell).readline))
        strings = [token.type == tokenize.STRING for token in tokens if token.type != tokenize.NL]
        if any(map(all, itertools.pairwise(strings))):
            # Python joins strings without a comma between them, and numpy prints no commas.
            return None
        with warnings.catch_warnings():
            # Python warns of unknown escapes in strings.
            warnings.simplefilter("ignore")
            value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, (list, dict)) else None


def parquet_rows(file: BinaryIO, path: str) -> Iterator[Element]:
    """Yields the rows of a Parquet file.

    Raises:
      DataError: pyarrow is missing, or the file is damaged.
    """
    return _arrow_rows(file, path, "a Parquet file")


def arrow_rows(file: BinaryIO, path: str) -> Iterator[Element]:
    """Yields the rows of an Arrow file or stream, such as `Dataset.save_to_disk` writes; errors are those of `parquet_rows`."""
    return _arrow_rows(file, path, "an Arrow file")


def rows_of(batches: Iterable[Any]) -> Iterator[Element]:
    """Yields the rows of Arrow record batches."""
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            value = _plain(row)
            yield Element(number, json.dumps(value, ensure_ascii=False, default=str), value)


def _arrow_rows(file: BinaryIO, path: str, what: str) -> Iterator[Element]:
    try:
        from pyarrow import ArrowException, ipc, parquet
    except ImportError:
        raise DataError(
            f"{path} is {what}, which needs pyarrow: pip install pyarrow; or save it as JSON Lines."
        ) from None
    try:
        if what == "a Parquet file":
            yield from rows_of(parquet.ParquetFile(file).iter_batches(batch_size=ROWS))
        elif _peek_magic(file) == ARROW_FILE:
            opened = ipc.open_file(file)
            yield from rows_of(
                opened.get_batch(index) for index in range(opened.num_record_batches)
            )
        else:
            yield from rows_of(ipc.open_stream(file))
    except ArrowException as error:
        reason = first_line(error)
        raise DataError(f"{path} is not {what} that can be read: {reason}.") from error


def _peek_magic(file: BinaryIO) -> bytes:
    magic = file.read(len(ARROW_FILE))
    file.seek(0)
    return magic


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
