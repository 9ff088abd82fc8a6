"""Recognises the format of a data file by its first bytes, and yields its elements one after another.

An element is a piece of text that should be one JSON value, or a row of a table as a dictionary.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, cast

from jaxalign.data import table_files
from jaxalign.data.elements import Element
from jaxalign.data.rejections import DataError

_HEAD = 1 << 16
_BLOCK = 1 << 16
_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV"}
# Formats that are recognised only so that the message can say what to do.
_REFUSED = {
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "decompress it: zstd -d FILE"),
    b"PK\x03\x04": (
        "a zip archive (Excel files are, too)",
        "unpack it, or export the sheet as CSV",
    ),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"\x80\x04": ("a Python pickle, which is never read", "save it as JSON Lines"),
    b"%PDF": ("a PDF file", "give a JSON Lines file"),
}


def open_elements(path: str) -> Iterator[Element]:
    """Yields the elements of a file in any supported format.

    Raises:
      DataError: the format is not supported. OSError, EOFError: the file, or its compressed data, cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path} is not a regular file; give the path of a data file.")
    with open(path, "rb") as file:
        yield from _elements(file, path)


def _elements(file: BinaryIO, path: str) -> Iterator[Element]:
    head = _peek(file)
    for magic, decompress in _COMPRESSED.items():
        if head.startswith(magic):
            try:
                yield from _elements(cast(BinaryIO, decompress(file, "rb")), path)
            except (lzma.LZMAError, zlib.error) as error:
                raise DataError(f"Cannot read the data file {path}: {error}.") from error
            return
    for magic, (what, advice) in _REFUSED.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}, not JSON Lines; {advice}.")
    if head.startswith(b"PAR1"):
        yield from table_files.parquet_rows(file, path)
        return
    if head.startswith((table_files.ARROW_FILE, table_files.ARROW_STREAM)):
        yield from table_files.arrow_rows(file, path)
        return
    encoding = _utf16(head)
    if encoding is None:
        lines = _utf8_lines(file, skip=len(codecs.BOM_UTF8) * head.startswith(codecs.BOM_UTF8))
        text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace")
    else:
        lines = _decoded_lines(file, encoding, path)
        text = head.decode(encoding, errors="replace")
    yield from _text_format(text, path)(lines)


def _peek(file: BinaryIO) -> bytes:
    head = file.read(_HEAD)
    file.seek(0)
    return head


def _utf16(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a byte order mark: the first character of every supported format is in ASCII.
    if len(head) >= 2 and 0 in head[:2] and head[:2] != b"\0\0":
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return None


def _utf8_lines(file: BinaryIO, skip: int) -> Iterator[Element]:
    file.seek(skip)
    for line, raw in enumerate(file, start=1):
        try:
            yield Element(line, raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            shown = raw.decode("utf-8", errors="replace")
            problem = f"not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start})"
            yield Element(line, shown, problem=problem)


def _decoded_lines(file: BinaryIO, encoding: str, path: str) -> Iterator[Element]:
    try:
        # Only \n ends a line, as in UTF-8.
        for line, text in enumerate(io.TextIOWrapper(file, encoding, newline="\n"), start=1):
            yield Element(line, text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} begins like UTF-16 but is not ({error.reason}); save it as UTF-8."
        ) from error


def _text_format(head: str, path: str) -> Callable[[Iterable[Element]], Iterator[Element]]:
    """Returns the reader for a text that begins like this.

    Raises:
      DataError: the format is not supported.
    """
    lines = [line.strip() for line in head.split("\n") if line.strip()]
    if not lines:
        return _json_lines
    if re.match(r"\[\s*[\[{]", "".join(lines[:2])):
        return _list_elements
    if lines[0].startswith("{") and _spans_lines(lines):
        return _concatenated
    delimiter = max(_DELIMITERS, key=lambda each: table_files.count_columns(lines[0], each))
    is_table = table_files.names_known_columns(lines[0], delimiter)
    if not is_table and any(line.startswith(("{", "[")) for line in lines):
        return _json_lines
    if table_files.count_columns(lines[0], delimiter):
        name = _DELIMITERS[delimiter]
        return lambda found: table_files.table(found, delimiter, path, name)
    raise DataError(
        f"{path} begins with {lines[0][:40]!r}, which is neither JSON nor the header row of a CSV file; give one JSON object a line, "
        'such as {"prompt": "...", "response": "...", "feedback": 1}.'
    )


def _spans_lines(lines: list[str]) -> bool:
    """Returns whether the first object ends on a later line; a bad first line of JSON Lines is followed by another object."""
    if lines[0][-1] not in "{[," or len(lines) < 2 or lines[1].startswith("{"):
        return False
    try:
        json.loads(lines[0])
    except ValueError:
        return True
    return False


def _json_lines(lines: Iterable[Element]) -> Iterator[Element]:
    for element in lines:
        text = element.text.strip()
        if text:
            yield Element(element.line, text, element.value, element.problem)


def _list_elements(lines: Iterable[Element]) -> Iterator[Element]:
    return _values(lines, in_list=True)


def _concatenated(lines: Iterable[Element]) -> Iterator[Element]:
    return _values(lines, in_list=False)


def _values(lines: Iterable[Element], *, in_list: bool) -> Iterator[Element]:
    """Yields the text of every object of a JSON list, or of consecutive objects; only one is in memory at a time."""
    opened = not in_list
    scanner = _Scanner()
    for element in lines:
        text = element.text
        if not opened:
            _, bracket, text = text.partition("[")
            opened = bool(bracket)
        for start, found in scanner.feed(text, element.line, element.problem):
            yield Element(start, found, problem=scanner.problem)
    if scanner.open:
        text = scanner.text()
        yield Element(scanner.start, text[:_BLOCK], problem="not valid JSON (the file ends in it)")


class _Scanner:
    """Finds the beginning and end of the objects of a text, from the brackets outside strings."""

    _TOKEN = re.compile(r'["\\{}\[\]]')

    def __init__(self) -> None:
        self.open = False
        self.start = 0
        self.problem = ""
        self._parts: list[str] = []
        self._depth = 0
        self._quoted = False

    def text(self) -> str:
        return "".join(self._parts)

    def feed(self, text: str, line: int, problem: str) -> Iterator[tuple[int, str]]:
        """Yields (line of its beginning, text) of every object that ends in this text."""
        begin = 0
        skip = -1
        for match in self._TOKEN.finditer(text):
            at, token = match.start(), match.group()
            if at == skip:
                continue
            if self._quoted:
                if token == "\\":
                    skip = at + 1
                elif token == '"':
                    self._quoted = False
                continue
            if token == '"':
                self._quoted = self.open
            elif token in "{[":
                if not self.open:
                    self.open, self.start, self.problem, begin = True, line, "", at
                self._depth += 1
            elif token in "}]" and self.open:
                self._depth -= 1
                if self._depth == 0:
                    self.problem = self.problem or problem
                    found = self.text() + text[begin : at + 1]
                    self._parts, self.open = [], False
                    yield self.start, found
        if self.open:
            self.problem = self.problem or problem
            self._parts.append(text[begin:])
