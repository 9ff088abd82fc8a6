"""The only reader of data files: JSON Lines, and the other formats that `file_formats` recognises.

Every command reads its records with this module. A line that cannot be read is rejected with its number and a reason; bad data
never cause a traceback. Only one line, one element of a list or one batch of a table is in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxalign import untrusted
from jaxalign.data import file_formats, hub_datasets
from jaxalign.data.elements import Element, Unreadable
from jaxalign.data.rejections import DataError, RejectionLog

# One decoder for all lines: json.loads would make a new one for each of them.
_DECODER = json.JSONDecoder(object_pairs_hook=untrusted.without_repeated_keys)


def read_json_lines(
    path: str | Path, *, log: RejectionLog | None = None, split: str = ""
) -> Iterator[tuple[int, Any, str]]:
    """Yields (line number, object, text) of every record of a file.

    The number is that of the line in a text file (the first line if an object spans several), or that of the row in a table.

    Args:
      path: JSON Lines, a JSON list, JSON objects over several lines, CSV, TSV, Parquet or Arrow; gzip, bzip2, xz and UTF-16 are decoded;
        or a dataset's address (`hub_datasets`).
      log: collects the lines that cannot be read; without a log the first such line raises DataError.
      split: the split that the log names.

    Raises:
      DataError: the file cannot be opened, or its format is not supported; the message names the format and what to do.
    """
    path = os.path.expanduser(os.fspath(path))
    try:
        address = hub_datasets.is_address(path)
        elements = hub_datasets.rows(path) if address else file_formats.open_elements(path)
        for element in elements:
            if log is not None:
                log.seen += 1
            try:
                yield element.line, _value_of(element), element.text
            except Unreadable as error:
                if log is None:
                    raise DataError(f"{path}:{element.line}: {error}.") from error
                log.reject(
                    "invalid_json",
                    str(error),
                    file=path,
                    line=element.line,
                    record=element.text,
                    split=split,
                )
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"Cannot read the data file {path}: {reason}.") from error
    except EOFError as error:
        raise DataError(
            f"Cannot read the data file {path}: its compressed data ends too early."
        ) from error


def read_json_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of every record of a file whose records must all be objects.

    Raises:
      DataError: a record is not an object (the message names the file and line of the first one); also as in `read_json_lines`.
    """
    place = Path(path).expanduser()
    if not hub_datasets.is_address(os.fspath(path)) and not place.is_file():
        problem = "is not a file" if place.exists() else "no such file"
        raise DataError(f"{path}: {problem}; give a JSON Lines file, one object a line.")
    for line, value, _ in read_json_lines(path):
        if not isinstance(value, dict):
            raise DataError(f"{path}:{line}: expected an object, got {type(value).__name__}.")
        yield line, value


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
      Unreadable: the text is not JSON, an object repeats a name, a number has thousands of digits, the nesting is too deep, or the
        text has half of a surrogate pair, which no text encoding can hold.
    """
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            # Only an escape can produce half of a surrogate pair.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise Unreadable(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise Unreadable("not valid JSON (nested too deeply)") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise Unreadable(
            f"the text holds \\u{ord(half):04x}, half of a surrogate pair, which is not a character"
        ) from None
    except ValueError as error:
        # Python's limit on the digits of an integer, or our check of repeated names.
        raise Unreadable(f"not valid JSON ({str(error).split(';')[0]})") from None
    return value


def _value_of(element: Element) -> Any:
    if element.problem:
        raise Unreadable(element.problem)
    return parse_json(element.text) if element.value is None else element.value
