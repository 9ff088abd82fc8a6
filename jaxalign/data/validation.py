"""Bad records: counted by reason, written to a side file with file and line, and never silently dropped."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from jaxalign.data.digests import Places
from jaxalign.data.json_lines import read_json_lines
from jaxalign.data.records import (
    ASSUMED_FEEDBACK,
    Record,
    RecordError,
    parse_record,
    states_feedback,
)
from jaxalign.data.rejections import DataError, RejectionLog

Item = TypeVar("Item")


def read_jsonl(
    path: str,
    kind: str,
    *,
    log: RejectionLog | None = None,
    fields: Mapping[str, str] | None = None,
    score_names: Sequence[str] | None = None,
    source: str = "",
    split: str = "",
) -> Iterator[Record]:
    """Records of a JSON Lines file, in order. Bad lines go to the log; without a log the first one raises DataError.

    For kind `multi` without `score_names`, the first good record's names (sorted) hold for the whole file.
    """
    return parse_objects(
        read_json_lines(path, log=log, split=split),
        kind,
        file=path,
        log=log,
        fields=fields,
        score_names=score_names,
        source=source or os.path.basename(path),
        split=split,
    )


def parse_objects(
    objects: Iterable[tuple[int, Any, str]],
    kind: str,
    *,
    file: str,
    log: RejectionLog | None = None,
    fields: Mapping[str, str] | None = None,
    score_names: Sequence[str] | None = None,
    source: str = "",
    split: str = "",
) -> Iterator[Record]:
    """Records of (line, object, text) triples; see `read_jsonl`."""
    for line, obj, text in objects:
        try:
            record = parse_record(
                obj,
                kind,
                fields=fields,
                score_names=score_names,
                source=source,
                file=file,
                line=line,
            )
        except RecordError as error:
            _report(error, log, file, line, text, split)
            continue
        if kind == "multi" and score_names is None:
            score_names = record_score_names(obj, fields)
        if log is not None and kind in ASSUMED_FEEDBACK and not states_feedback(obj, kind, fields):
            log.notes[ASSUMED_FEEDBACK[kind]] += 1
        yield record


def parse_objects_with(
    objects: Iterable[tuple[int, Any, str]],
    parser: Callable[..., list[Record]],
    *,
    file: str,
    log: RejectionLog | None = None,
    split: str = "",
) -> Iterator[Record]:
    """Records that a parser finds in objects of another layout.

    The parser takes (object, *, file, line, reject, note) and returns records. `reject(reason, message)` reports a part
    of the object that cannot be used, a RecordError the whole of it, `note(name)` counts what was left out on purpose.
    """
    for line, obj, text in objects:
        parts_rejected = 0

        def reject(reason: str, message: str, line: int = line, text: str = text) -> None:
            nonlocal parts_rejected
            parts_rejected += 1
            _report(RecordError(reason, message), log, file, line, text, split)

        def note(name: str) -> None:
            if log is not None:
                log.notes[name] += 1

        try:
            records = parser(obj, file=file, line=line, reject=reject, note=note)
        except RecordError as error:
            _report(error, log, file, line, text, split)
            continue
        if log is not None:
            # The line itself was counted once; count its parts instead.
            log.seen += len(records) + parts_rejected - 1
        yield from records


def _report(
    error: RecordError, log: RejectionLog | None, file: str, line: int, text: str, split: str
) -> None:
    if log is None:
        raise DataError(f"{file}:{line}: {error}.") from error
    log.reject(error.reason, str(error), file=file, line=line, record=text, split=split)


def record_score_names(obj: Mapping[str, Any], fields: Mapping[str, str] | None) -> tuple[str, ...]:
    """Sorted names of a `multi` object's scores."""
    scores = obj[(fields or {}).get("scores", "scores")]
    return tuple(sorted(scores[0] if isinstance(scores, list) else scores))


def drop_duplicates(
    items: Iterable[Item],
    log: RejectionLog,
    split: str = "",
    record_of: Callable[[Item], Record] = lambda item: cast(Record, item),
) -> Iterator[Item]:
    """The first of every set of equal records; the others are rejected with the place of the first.

    `record_of` finds the record in an item, where the items are not records themselves.
    """
    seen = Places()
    for item in items:
        record = record_of(item)
        first = seen.add(repr(record.key), record.file, record.line)
        if first is None:
            yield item
        else:
            where = dataclasses.replace(record, file=first[0], line=first[1]).where
            log.reject_record(record, "duplicate", f"the same record as {where}", split)


class ReferenceSamples:
    """Refuses records whose number of `reference_feedback` values is not that of the task's first record.

    Batches have one array for all examples, so the number must be the same in every split.
    """

    def __init__(self) -> None:
        self._first: Record | None = None

    def same(
        self,
        items: Iterable[Item],
        log: RejectionLog,
        split: str = "",
        record_of: Callable[[Item], Record] = lambda item: cast(Record, item),
    ) -> Iterator[Item]:
        """The items with as many values as the first one ever seen; the others are rejected."""
        for item in items:
            record = record_of(item)
            if self._first is None:
                self._first = record
            wanted, found = _sample_count(self._first), _sample_count(record)
            if found == wanted:
                yield item
                continue
            message = (
                f"reference_feedback holds {found} numbers, and {wanted} in the first record ({self._first.where}); "
                "every record of a task needs equally many"
            )
            log.reject_record(record, "reference_mismatch", message, split)


def _sample_count(record: Record) -> int:
    return 0 if record.reference_feedback is None else len(record.reference_feedback)


def same_reference_feedback(
    records: Iterable[Record], log: RejectionLog | None, split: str = ""
) -> Iterator[Record]:
    """Records whose `reference_feedback` is that of the first record of their prompt; the others cannot be joined with it.

    They are rejected; without a log the first one raises DataError.
    """
    first: dict[str, Record] = {}
    for record in records:
        origin = first.setdefault(record.prompt, record)
        if record.reference_feedback == origin.reference_feedback:
            yield record
            continue
        message = f"reference_feedback differs from that of the same prompt at {origin.where}, and records of a prompt are joined"
        if log is None:
            raise DataError(f"{record.where}: {message}.")
        log.reject_record(record, "reference_mismatch", message, split)
