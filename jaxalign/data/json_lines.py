"""The reader of JSON Lines files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jaxalign.data.rejections import DataError, RejectionLog


def read_json_lines(
    path: str, *, log: RejectionLog | None = None, split: str = ""
) -> Iterator[tuple[int, Any, str]]:
    """(line number, object, text) of every line that is not blank; invalid JSON or UTF-8 is rejected."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; errors of later reads are not this one's)
    except OSError as error:
        raise DataError(f"Cannot read the data file {path}: {error.strerror}.") from error
    with file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            if log is not None:
                log.seen += 1
            try:
                text = raw.decode("utf-8")
                obj = json.loads(text)
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                message = f"not valid JSON ({error})"
                if log is None:
                    raise DataError(f"{path}:{line}: {message}.") from error
                shown = raw.decode("utf-8", errors="replace").strip()
                log.reject("invalid_json", message, file=path, line=line, record=shown, split=split)
                continue
            yield line, obj, text.strip()
