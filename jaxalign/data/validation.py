"""Reads records and handles bad ones: they are counted by reason, written to a side file with file and line, never lost silently."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxalign.data import layouts, recognition
from jaxalign.data.chat_templates import ChatTemplate
from jaxalign.data.digests import Places
from jaxalign.data.images import ImageReader
from jaxalign.data.json_lines import read_json_lines
from jaxalign.data.record_fields import RecordError, field_value
from jaxalign.data.records import ASSUMED_FEEDBACK, Record, parse_record, states_feedback
from jaxalign.data.rejections import DataError, RejectionLog

# The beginning of the note that counts the records with a score that the task does not have.
UNUSED_SCORE = "unused_score "
# If this many records at the beginning of a file are all of another kind or layout, reading stops.
_MISREAD = 20
_RECORDS_FOR_SCORE_NAMES = 100_000


def read_jsonl(
    path: str,
    kind: str,
    *,
    log: RejectionLog | None = None,
    layout: str = "records",
    fields: Mapping[str, str] | None = None,
    score_names: Sequence[str] | None = None,
    source: str = "",
    split: str = "",
) -> Iterator[Record]:
    """Yields the records of a data file, in order. Bad lines go to the log; without a log the first one raises DataError.

    For kind `multi` without `score_names`, the score names of most records apply to the whole file (`common_score_names`).
    """
    if kind == "multi" and score_names is None:
        score_names = common_score_names(read_json_lines(path, log=RejectionLog()), fields=fields)
    return parse_objects(
        read_json_lines(path, log=log, split=split),
        kind,
        file=path,
        log=log,
        layout=layout,
        fields=fields,
        score_names=score_names or None,
        source=source or os.path.basename(path),
        split=split,
    )


def parse_objects(
    objects: Iterable[tuple[int, Any, str]],
    kind: str,
    *,
    file: str,
    log: RejectionLog | None = None,
    layout: str = "records",
    fields: Mapping[str, str] | None = None,
    score_names: Sequence[str] | None = None,
    source: str = "",
    split: str = "",
    images: ImageReader | None = None,
    template: ChatTemplate | None = None,
) -> Iterator[Record]:
    """Yields the records of (line, object, text) triples; see `read_jsonl`.

    Raises:
      DataError: the file begins with many records of another kind or layout; the message names it and the options that read it.
    """
    renamed = dict(fields or {})
    names = {} if layout != "records" else renamed
    beginning = Beginning(file)
    for line, given, text in objects:
        try:
            obj = layouts.to_record_fields(given, layout, renamed, template)
            record = parse_record(
                obj,
                kind,
                fields=names,
                score_names=score_names,
                source=source,
                file=file,
                line=line,
                images=images,
            )
        except RecordError as error:
            if beginning:
                found = recognition.readable_as(given, kind, layout, renamed)
                remedy = "" if found is None else f"read with {found.flags()}"
                error = beginning.explain(error, found, remedy, line)
            _report(error, log, file, line, text, split)
            continue
        beginning.end()
        if log is not None:
            if kind in ASSUMED_FEEDBACK and not states_feedback(obj, kind, names):
                log.notes[ASSUMED_FEEDBACK[kind]] += 1
            if images is None and field_value(obj, names.get("image", "image")) is not None:
                log.notes["unread_images"] += 1
            if kind == "multi" and score_names is not None:
                for name in set(record_score_names(obj, names)) - set(score_names):
                    log.notes[f"{UNUSED_SCORE}{name}"] += 1
        yield record


class Beginning:
    """The unreadable records at the beginning of a file; true until a record is readable.

    If they are records of another kind or layout, the user gave the wrong options, and reading the rest of the file is useless.
    """

    def __init__(self, file: str) -> None:
        self._file, self._misread, self._lasts = file, 0, True

    def __bool__(self) -> bool:
        return self._lasts

    def end(self) -> None:
        """Records that a record was readable."""
        self._lasts = False

    def explain(
        self, error: RecordError, found: recognition.Found | None, remedy: str, line: int
    ) -> RecordError:
        """Returns the error; for the first record of another form, with that form and the remedy.

        Args:
          error: the error of the record.
          found: the form that the record has; None if it has no other known form.
          remedy: what to do with a file of that form.
          line: the line of the record.

        Raises:
          DataError: many records have another form.
        """
        if found is None:
            return error
        self._misread += 1
        advice = (
            f"; the record looks like {found.describe()}, which is {remedy}; `jaxalign inspect {self._file}` writes a gin file "
            "with the right options"
        )
        if self._misread == _MISREAD:
            raise DataError(
                f"{self._file}:{line}: {error}, as in {_MISREAD - 1} records before{advice}."
            ) from error
        return RecordError(error.reason, f"{error}{advice}") if self._misread == 1 else error


def parse_objects_with(
    objects: Iterable[tuple[int, Any, str]],
    parser: Callable[..., list[Record]],
    *,
    file: str,
    log: RejectionLog | None = None,
    split: str = "",
) -> Iterator[Record]:
    """Yields the records that a parser finds in objects of another layout.

    The parser takes (object, *, file, line, reject, note) and returns records. `reject(reason, message)` reports a part
    of the object that cannot be used. A RecordError reports that the whole object cannot be used. `note(name)` counts parts
    that were left out on purpose.
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
            # The line itself was counted once; its parts are counted instead.
            log.seen += len(records) + parts_rejected - 1
        yield from records


def _report(
    error: RecordError, log: RejectionLog | None, file: str, line: int, text: str, split: str
) -> None:
    if log is None:
        raise DataError(f"{file}:{line}: {error}.") from error
    log.reject(error.reason, str(error), file=file, line=line, record=text, split=split)


def record_score_names(obj: Any, fields: Mapping[str, str] | None) -> tuple[str, ...]:
    """Returns the sorted names of a `multi` object's scores; empty if it has no scores."""
    scores = (
        field_value(obj, (fields or {}).get("scores", "scores"))
        if isinstance(obj, Mapping)
        else None
    )
    if isinstance(scores, list):
        scores = scores[0] if scores else None
    return tuple(sorted(scores)) if isinstance(scores, Mapping) else ()


def common_score_names(
    objects: Iterable[tuple[int, Any, str]],
    *,
    fields: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Returns the sorted names of the scores of at least half of the records with scores, so that no single record decides."""
    counts: Counter[str] = Counter()
    records = 0
    for _, obj, _ in itertools.islice(objects, _RECORDS_FOR_SCORE_NAMES):
        names = record_score_names(obj, fields)
        records += bool(names)
        counts.update(names)
    return tuple(sorted(name for name, count in counts.items() if 2 * count >= records))


class Duplicates:
    """Rejects records that equal an earlier one.

    Args:
      folder: the folder of temporary files, see `Places`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._seen = Places(folder)

    def is_new(self, record: Record, log: RejectionLog, split: str = "") -> bool:
        """Returns whether the record is the first of its kind; another one is rejected with the location of the first."""
        first = self._seen.add(repr(record.key), record.file, record.line)
        if first is None:
            return True
        where = dataclasses.replace(record, file=first[0], line=first[1]).where
        log.reject_record(record, "duplicate", f"the same record as {where}", split)
        return False


class ReferenceSamples:
    """Rejects records whose number of `reference_feedback` values differs from that of the task's first record.

    Batches have one array for all examples, so the number must be the same in every split.
    """

    def __init__(self) -> None:
        self._first: Record | None = None

    def agrees(self, record: Record, log: RejectionLog, split: str = "") -> bool:
        """Returns whether the record has as many values as the first record ever given; another one is rejected."""
        if self._first is None:
            self._first = record
        wanted, found = _sample_count(self._first), _sample_count(record)
        if found == wanted:
            return True
        message = (
            f"reference_feedback holds {found} numbers, and {wanted} in the first record ({self._first.where}); "
            "every record of a task needs equally many"
        )
        log.reject_record(record, "reference_mismatch", message, split)
        return False


def _sample_count(record: Record) -> int:
    return 0 if record.reference_feedback is None else len(record.reference_feedback)


class PromptReferences:
    """Rejects records whose `reference_feedback` differs from that of the first record of their prompt: they cannot be joined."""

    def __init__(self) -> None:
        self._first: dict[str, Record] = {}

    def agrees(self, record: Record, log: RejectionLog | None, split: str = "") -> bool:
        """Returns whether the record can be joined with the first one of its prompt; without a log, DataError is raised if not."""
        origin = self._first.setdefault(record.prompt_key, record)
        if record.reference_feedback == origin.reference_feedback:
            return True
        message = f"reference_feedback differs from that of the same prompt at {origin.where}, and records of a prompt are joined"
        if log is None:
            raise DataError(f"{record.where}: {message}.")
        log.reject_record(record, "reference_mismatch", message, split)
        return False
