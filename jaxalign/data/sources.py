"""Sources of records that do not need TensorFlow: data files (`bundled_sources` has the bundled tasks).

A source knows its record kind and yields the `Record`s of each split; bad records go to a `RejectionLog`. `tasks.py` wraps
the same sources as seqio Tasks, so a task gives the same records in both cases.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from jaxalign.data import data_files, derived, json_lines, layouts, validation
from jaxalign.data.candidate_records import CandidatesParser, common_scores
from jaxalign.data.chat_templates import ChatTemplate
from jaxalign.data.images import ImageFormat, ImageReader
from jaxalign.data.records import Record, check_kind
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.ultrafeedback import ASPECTS, UltraFeedbackParser

SPLIT_FRACTIONS = {"train": 0.9, "validation": 0.1}


class RecordSource(Protocol):
    """A data set of one record kind."""

    kind: str
    score_names: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]: ...

    def records(self, split: str, log: RejectionLog | None = None) -> Iterator[Record]: ...

    def records_by_split(
        self, splits: Sequence[str], logs: Mapping[str, RejectionLog]
    ) -> Iterator[tuple[str, Record]]:
        """Yields (split, record) of several splits; `logs` has a log for each split."""
        for split in splits:
            for record in self.records(split, logs[split]):
                yield split, record

    def fingerprint(self) -> str | None: ...


def prompt_fraction(prompt: str, seed: int = 0) -> float:
    """Returns a number in [0, 1) that depends only on the prompt's text and the seed."""
    digest = hashlib.blake2b(f"{seed}\n{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def split_of_prompt(prompt: str, fractions: Mapping[str, float], seed: int = 0) -> str:
    """Returns the split of a prompt. The hash of its text decides, so a prompt is in the same split in every file."""
    total = sum(fractions.values())
    position, edge = prompt_fraction(prompt, seed) * total, 0.0
    for name, fraction in fractions.items():
        edge += fraction
        if position < edge:
            return name
    return list(fractions)[-1]


@dataclasses.dataclass
class JsonlSource(RecordSource):
    """Data files of one kind: JSON Lines, or another format that `json_lines` reads.

    Attributes:
      files: split -> path, or a list of paths: files, patterns, folders or addresses of datasets (`data_files`). With only a "train" file,
        one tenth of the *prompts* becomes "validation" (by hash and `split_seed`).
      kind: record kind.
      layout: see `layouts`.
      fields: the file's names for prompt, response, feedback ... if they differ, as a mapping or as text such as
        "response=completion,feedback=label".
      score_names: for kind multi, the scores and their order; () takes those of most records of the first split.
      responses_per_example: if above 1, records of one prompt are joined into examples with up to that many responses.
      split_fractions, split_seed: determine how one file is divided.
      duplicates: "reject" or "keep" repeated records. It is applied here only before records are joined; the cache always applies it.
      parser: reads objects of another layout; see `validation.parse_objects_with`.
      images: the format of the images of records; None to read none.
      chat_template: turns chat messages into text; None for lines `role: content`.
    """

    files: Mapping[str, str | Sequence[str]]
    kind: str
    layout: str = "records"
    fields: str | Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_names: tuple[str, ...] = ()
    responses_per_example: int = 1
    split_fractions: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: dict(SPLIT_FRACTIONS)
    )
    split_seed: int = 0
    duplicates: str = "reject"
    parser: Callable[..., list[Record]] | None = None
    images: ImageFormat | None = None
    chat_template: ChatTemplate | None = None

    def __post_init__(self) -> None:
        try:
            check_kind(self.kind)
        except ValueError as error:
            raise DataError(str(error)) from None
        layouts.check_layout(self.layout)
        self.fields = layouts.parse_fields(self.fields)
        if self.layout == "ultrafeedback" and self.parser is None:
            self.parser = UltraFeedbackParser(self.kind)
            self.score_names = ASPECTS if self.kind == "multi" else ()
        if not self.files.get("train") and len(self.files) < 1:
            raise DataError("A JSON Lines task needs at least one file, for the split 'train'.")
        if self.kind == "multi" and not self.score_names and self.parser is None:
            self.score_names = self._common_score_names()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.split_fractions) if self._divided else tuple(self.files)

    @property
    def _divided(self) -> bool:
        return list(self.files) == ["train"]

    def paths(self, split: str) -> list[str]:
        """Returns the files of a split, with patterns and folders expanded, sorted."""
        given = self.files.get("train" if self._divided else split)
        if given is None:
            raise DataError(f"The task has no split {split!r}; it has {', '.join(self.splits)}.")
        found: list[str] = []
        for path in [given] if isinstance(given, str) else given:
            try:
                found.extend(data_files.expand(path))
            except data_files.NoFileError as error:
                raise DataError(f"{error} (split {split!r}).") from None
        return found

    def records(self, split: str, log: RejectionLog | None = None) -> Iterator[Record]:
        for _, record in self.records_by_split([split], None if log is None else {split: log}):
            yield record

    def records_by_split(
        self, splits: Sequence[str], logs: Mapping[str, RejectionLog] | None
    ) -> Iterator[tuple[str, Record]]:
        """Yields (split, record) of several splits. A file that is divided by prompt is read once; other files split by split.

        Without logs the first bad record raises DataError.
        """
        for split in splits:
            if split not in self.splits:
                raise DataError(
                    f"The task has no split {split!r}; it has {', '.join(self.splits)}."
                )
        if self._divided:
            records = self._divide(splits, logs)
        else:
            records = (
                (split, record)
                for split in splits
                for record in self._of_files(split, None if logs is None else logs[split])
            )
        return self._joined(records, splits, logs) if self.responses_per_example > 1 else records

    def _of_files(self, split: str, log: RejectionLog | None) -> Iterator[Record]:
        for path in self.paths(split):
            yield from self._read(path, log, split)

    def _divide(
        self, splits: Sequence[str], logs: Mapping[str, RejectionLog] | None
    ) -> Iterator[tuple[str, Record]]:
        # A bad line has no prompt to determine its split, so it is counted in the first split.
        first = next(iter(self.split_fractions))
        read_log = None if logs is None else RejectionLog()
        for record in self._of_files(first, read_log):
            split = split_of_prompt(record.prompt_key, self.split_fractions, self.split_seed)
            if split in splits:
                if logs is not None:
                    logs[split].seen += 1
                yield split, record
        if logs is not None and read_log is not None and first in splits:
            logs[first].entries.extend(read_log.entries)
            logs[first].notes.update(read_log.notes)
            logs[first].seen += len(read_log.entries)

    def _joined(
        self,
        records: Iterable[tuple[str, Record]],
        splits: Sequence[str],
        logs: Mapping[str, RejectionLog] | None,
    ) -> Iterator[tuple[str, Record]]:
        kept: dict[str, list[Record]] = {split: [] for split in splits}
        duplicates = {split: validation.Duplicates() for split in splits}
        references = {split: validation.PromptReferences() for split in splits}
        for split, record in records:
            log = None if logs is None else logs[split]
            repeated = (
                log is not None
                and self.duplicates == "reject"
                and not duplicates[split].is_new(record, log, split)
            )
            if not repeated and references[split].agrees(record, log, split):
                kept[split].append(record)
        for split in splits:
            for record in derived.group_by_prompt(kept.pop(split), self.responses_per_example):
                yield split, record

    def _read(self, path: str, log: RejectionLog | None, split: str) -> Iterator[Record]:
        objects = self.objects(path, log, split)
        file = self.describe(path)
        parser = self.parser
        images = None if self.images is None else ImageReader(self.images)
        if self.layout == "candidates" and parser is None:
            parser = CandidatesParser(
                self.kind, layouts.parse_fields(self.fields), self.score_names, images
            )
        if parser is not None:
            return validation.parse_objects_with(objects, parser, file=file, log=log, split=split)
        return validation.parse_objects(
            objects,
            self.kind,
            file=file,
            log=log,
            layout=self.layout,
            fields=layouts.parse_fields(self.fields),
            score_names=self.score_names or None,
            source=os.path.basename(file),
            split=split,
            images=images,
            template=self.chat_template,
        )

    def objects(
        self, path: str, log: RejectionLog | None, split: str
    ) -> Iterator[tuple[int, Any, str]]:
        """Yields (line number, object, text) of a file."""
        return json_lines.read_json_lines(path, log=log, split=split)

    def describe(self, path: str) -> str:
        """Returns the name of the file in reports."""
        return path

    def _common_score_names(self) -> tuple[str, ...]:
        objects = (
            item
            for path in self.paths(self.splits[0])
            for item in self.objects(path, RejectionLog(), "")
        )
        fields = layouts.parse_fields(self.fields)
        if self.layout == "candidates":
            names = common_scores(objects, fields)
        else:
            names = validation.common_score_names(objects, fields=fields)
        if names:
            return names
        raise DataError(f"No record of {self.files} has scores; give score_names, or another kind.")

    def fingerprint(self) -> str | None:
        """Returns a hash of the files' content and the reading options; None if there is a parser, or images in files of their own."""
        if self.parser is not None or self.images is not None:
            return None
        digest = hashlib.sha256()
        options = dataclasses.asdict(self)
        options.pop("files")
        options.pop("images")
        if options.pop("chat_template") is not None and self.chat_template is not None:
            options["chat_template"] = self.chat_template.describe()
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
        for split in self.splits:
            for path in self.paths(split):
                digest.update(f"\n{split}\n".encode())
                data_files.update_digest(digest, path)
        return digest.hexdigest()
