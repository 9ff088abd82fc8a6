"""Reads the records of an evaluation from a data file or a cache.

Records are parsed and rejected by the rules of the cache: a file and the cache made of it give an evaluation the same records.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data import data_files, json_lines, layouts, preferences, recognition, validation
from jaxalign.data.chat_templates import read_chat_template
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.evaluation_form import Form
from jaxalign.data.evaluation_set import EvaluationSet
from jaxalign.data.images import ImageFormat, ImageReader
from jaxalign.data.record_fields import RecordError, field_value
from jaxalign.data.records import KINDS, Record, is_candidates, parse_record
from jaxalign.data.rejections import MAX_REJECTED_FRACTION, RejectionLog
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError


def prompt_of(record: dict[str, Any], field: str, path: str | Path, number: int) -> str:
    """Returns the prompt of a record.

    Raises:
      UserError: the field is missing, not a string, or empty.
    """
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        raise UserError(
            f"{path}:{number}: field '{field}' is missing (fields there: {names}); "
            "name the field with prompt_field."
        )
    prompt = record[field]
    if not isinstance(prompt, str) or not prompt.strip():
        found = recognition.layout_of(record)
        foreign = (
            f"; the record looks like {found.describe()}, whose prompts are read by `jaxalign cache` only: write them as text"
            if found is not None and found.layout != "records"
            else ""
        )
        raise UserError(f"{path}:{number}: field '{field}' must be a non-empty string{foreign}.")
    return prompt


@dataclasses.dataclass(frozen=True)
class EvaluationRecords:
    """The records of a file or of a split, before any policy reads them.

    Attributes:
      path: the file or folder of the records.
      records: the records; a line with only a prompt is a record without responses.
      references: for each record, further references from its fields `references` and `target`.
      rejected: the number of rejected records so far, by reason.
      note: a sentence about lines of which only the prompt was read although they hold responses in another form; '' if there are none.
      images: the format of the records' images, if they were read.
    """

    path: str
    records: Sequence[Record]
    references: Sequence[Sequence[str]]
    rejected: Mapping[str, int]
    note: str = ""
    images: ImageFormat | None = None

    def readable(self, encoders: Sequence[TextEncoder]) -> EvaluationRecords:
        """Returns the records that a cache with every encoder's limits would hold, and counts the others.

        Raises:
          UserError: no record remains.
        """
        kept, rejected = [], Counter(self.rejected)
        distinct = list(dict.fromkeys(encoders))
        for index, record in enumerate(self.records):
            image_tokens = self.images.num_patches if self.images and record.image else 0
            problems = (
                encoder.problem(record.prompt, record.responses, image_tokens)
                for encoder in distinct
            )
            problem = next(filter(None, problems), None)
            if problem is None:
                kept.append(index)
            else:
                rejected[problem[0]] += 1
                first = f"{record.where}: {problem[1]}"
        if not kept:
            reason = f"; the last one, {first}" if self.records else ""
            raise UserError(f"{self.path}: holds no record that can be evaluated{reason}.")
        return dataclasses.replace(
            self,
            records=[self.records[index] for index in kept],
            references=[self.references[index] for index in kept],
            rejected=dict(rejected),
        )

    def to_set(self) -> EvaluationSet:
        """Groups the records by prompt."""
        result = EvaluationSet()
        for record, references in zip(self.records, self.references, strict=True):
            result.add(record, references)
        return result

    def describe_rejected(self) -> str:
        """Returns one sentence about the records that were left out, or '' if none was."""
        if not self.rejected:
            return ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
        total = len(self.records) + sum(self.rejected.values())
        return f"{sum(self.rejected.values())} of {total} records of {self.path} were left out: {reasons}"


def read_evaluation_records(
    path: str | Path,
    *,
    side_file: str,
    split: str = "validation",
    kind: str = "",
    layout: str = "records",
    fields: str | Sequence[str] | Mapping[str, str] = (),
    prompt_field: str = "prompt",
    duplicates: str = "reject",
    max_rejected_fraction: float = MAX_REJECTED_FRACTION,
    images: ImageFormat | None = None,
    chat_template: str = "",
) -> EvaluationRecords:
    """Reads a data file, or a split of a cache folder.

    Args:
      path: the file or folder.
      side_file: lists the unusable lines of a file if there are so many that reading stops.
      split: the split of a cache.
      kind: the kind of a file's records; '' detects it for each line (`recognise_kind`).
      layout, fields: how to read a file, see `layouts`.
      chat_template: what turns the chat messages of a file into text, see `chat_templates`; '' for lines `role: content`.
      prompt_field: the name of the prompt in a file; a short form of `fields` with prompt=NAME.
      duplicates: 'reject' or 'keep' repeated records of a file.
      max_rejected_fraction: the largest share of a file's lines that may be unusable.
      images: the format of the records' images; None to read none.

    Raises:
      UserError: the file is missing or empty, too many lines are unusable, or the lines have another layout (the message names the
        file and line, the layout, and the options that read it); or the folder is not a cache or has no such split.
    """
    if duplicates not in ("reject", "keep"):
        raise UserError(f"duplicates={duplicates!r}; known: 'reject', 'keep'.")
    if Path(path).is_dir():
        return _of_cache(str(path), split, images)
    if kind and kind not in KINDS:
        raise UserError(f"kind={kind!r}; known: {', '.join(KINDS)}, or nothing to recognise it.")
    names = {"prompt": prompt_field} | layouts.parse_fields(fields)
    template = read_chat_template(chat_template) if chat_template else None
    form = Form(kind, layouts.check_layout(layout), names, template)
    log = RejectionLog()
    only_prompts: list[recognition.Found] = []
    reader = None if images is None else ImageReader(images)
    parsed = [
        item
        for file in data_files.expand(path)
        for item in _parse(file, log, form, only_prompts, reader)
    ]
    log.check(max_rejected_fraction, side_file)
    records = _of_file(str(path), log, parsed, duplicates)
    note = form.note(records.path, only_prompts)
    return dataclasses.replace(records, note=note, images=images)


def recognise_kind(obj: Mapping[str, Any]) -> str:
    """Returns the record kind that an object's fields imply; '' for a prompt alone.

    Candidates, such as lines written by `jaxalign generate`, count as prompts alone, because nobody ranked their responses.
    """
    if obj.get("chosen") is not None and obj.get("rejected") is not None:
        return "pair"
    if obj.get("responses") is not None and not is_candidates(obj):
        return "multi" if obj.get("scores") is not None else "ranked"
    if obj.get("response") is None:
        return ""
    if obj.get("scores") is not None:
        return "multi"
    return "triplet" if obj.get("feedback") is not None else "seq2seq"


def _of_cache(path: str, split: str, images: ImageFormat | None) -> EvaluationRecords:
    cache = TaskCache(path)
    if images is not None and cache.metadata.images not in (None, images):
        raise UserError(
            f"{path} holds images of another format ({cache.metadata.images}) than the policies read ({images}); give the data file"
        )
    records = [
        Record(
            prompt=example.prompt,
            responses=example.responses,
            feedback=None if example.feedback is None else tuple(example.feedback.tolist()),
            file=example.file,
            line=example.line,
            image=None if images is None else example.image,
        )
        for example in cache.split(split)
    ]
    return EvaluationRecords(path, records, [()] * len(records), {}, images=images)


def _of_file(
    path: str,
    log: RejectionLog,
    parsed: Sequence[tuple[Record, tuple[str, ...]]],
    duplicates: str,
) -> EvaluationRecords:
    if not parsed:
        raise UserError(f"{path}: holds no prompts.")
    if duplicates == "reject":
        # References alone do not make a record, so they cannot be duplicates.
        duplicates_of = validation.Duplicates()
        parsed = [
            item for item in parsed if not item[0].responses or duplicates_of.is_new(item[0], log)
        ]
    records, references = zip(*parsed, strict=True)
    return EvaluationRecords(path, records, references, log.counts)


def _parse(
    path: str,
    log: RejectionLog,
    form: Form,
    only_prompts: list[recognition.Found],
    images: ImageReader | None,
) -> Iterator[tuple[Record, tuple[str, ...]]]:
    """Yields each record with its references; appends to `only_prompts` the form of each line whose responses are not read."""
    beginning = validation.Beginning(path)
    for line, given, text in json_lines.read_json_lines(path, log=log):
        try:
            if not isinstance(given, Mapping):
                raise RecordError("wrong_type", "the line holds no object")
            obj = _with_our_names(given, form)
            found = form.kind or recognise_kind(obj)
            if found:
                record = parse_record(obj, found, file=path, line=line, images=images)
            else:
                # A prompt alone is checked like the prompt of a record with a response.
                record = parse_record(
                    {**obj, "response": "-"}, "seq2seq", file=path, line=line, images=images
                )
                record = dataclasses.replace(record, responses=())
                unread = form.other_with_responses(given)
                only_prompts += [unread] if unread is not None else []
            record, _, _ = preferences.ordered(record, record.responses, found)
            references = _references(obj)
        except RecordError as error:
            other = form.other(given) if beginning else None
            if other is not None:
                error = beginning.explain(error, other, form.remedy(other), line)
            log.reject(error.reason, str(error), file=path, line=line, record=text)
            continue
        beginning.end()
        yield record, references


def _with_our_names(given: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """Returns the object with our field names, whatever names the file uses.

    Raises:
      RecordError: the object does not have the layout, or has no prompt under the given name.
    """
    layout, fields = form.layout, form.fields
    if layout in ("ultrafeedback", "candidates"):
        raise UserError(
            f"an evaluation does not read the layout {layout!r}; make a cache of it, and give that"
        )
    obj = dict(layouts.to_record_fields(given, layout, fields, form.template))
    if layout == "records":
        obj |= {ours: field_value(given, theirs) for ours, theirs in fields.items()}
    if obj.get("prompt") is None:
        name = fields.get("prompt", "prompt")
        raise RecordError("missing_field", f"the field {name!r} is missing")
    return {name: value for name, value in obj.items() if value is not None}


def _references(obj: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields `references` (a text or a list of texts) and `target`."""
    given = obj.get("references", [])
    references = [given] if isinstance(given, str) else list(given)
    if "target" in obj:
        references.append(obj["target"])
    for text in references:
        if not isinstance(text, str):
            raise RecordError(
                "wrong_type", f"'references' and 'target' must hold text, got {text!r}"
            )
    return tuple(references)
