"""From a task's name to the batches of a run: makes the cache if needed, finds or makes reference scores, opens the datasets."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import hub
from jaxalign.data import (
    bundled_sources,
    cache_checks,
    example_sampling,
    layouts,
    stored_fields,
)
from jaxalign.data import cache as cache_module
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.example_sampling import Sampling
from jaxalign.data.images import ImageFormat
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.records import KINDS
from jaxalign.data.rejections import MAX_REJECTED_FRACTION
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.tokenization import DUPLICATES, LONG_PROMPTS, Limits
from jaxalign.data.vocabularies import Vocabulary, vocabulary_from_spec
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.parallel import distributed

RESPONSES = ("auto", "all", "best")
TIES = ("auto", "keep", "drop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskData:
    """The data of a run.

    Attributes:
      task: a bundled task, a task or mixture registered with seqio, or any name for the files below.
      cache_dir: the tokenised cache; made on first use.
      feature_lengths: ``inputs`` and ``targets``, the tokens of a prompt and of one response, including EOS.
      vocabulary: 'bytes', or the path of a SentencePiece model, a tokenizer.json or their folder; the task's own by default.
      extra_ids: the number of sentinels after the vocabulary (100 for T5).
      kind: the record kind of the files.
      layout: the layout of the files, 'records', 'candidates' or one of another library (`data.layouts`).
      chat_template: a Jinja file or the folder of a tokenizer, which turns chat messages into text; None for lines `role: content`.
      fields: field names of the files that differ from ours, such as 'response=completion,feedback=label', or {our name: the files' name}.
      train_file: JSON Lines, or another format that `data.json_lines` reads; also a pattern, a folder or an address (`data.data_files`).
      validation_file: JSON Lines; without it a tenth of the training file's prompts is held out.
      responses_per_example: if above 1, records of one prompt are joined.
      duplicates: 'reject' or 'keep' repeated records.
      long_prompts: 'truncate', 'truncate_left' or 'reject'.
      max_rejected_fraction: the run stops if a larger share of the records of all splits together is bad.
      pack: whether to put several short examples into a row.
      max_examples_per_row: the largest number of examples in a row, when packing.
      row_lengths: the lengths of packed rows, if they differ from ``feature_lengths``.
      standardize_rewards: whether to standardise by the training split's stored mean and deviation.
      train_split: the split to train on.
      eval_split: the split for evaluation during training; '' for none.
      stored: {field: name of a stored array}, for the fields of `data.stored_fields.FIELDS`.
      responses: the responses to a prompt that are read: 'all'; 'best', the chosen one of a pair or the one with the highest feedback; or
        'auto', which is 'best' if an objective that only imitates (sft, nll, gold, ift) reads pairs or ranked records, else 'all'.
      ties: 'keep' or 'drop' examples whose responses all have the same feedback; or 'auto', which is 'drop' for an objective that only
        learns which of two responses is better.
      paired_lines: whether two consecutive lines are one comparison and come into one batch; a run sets it for an objective that needs it.
      sampling: the training examples that are drawn: 'uniform', 'positive', 'priority' or 'reward' (`data.example_sampling.open_sampling`).
      sampling_field: the stored field for 'positive' and 'priority'.
      images: the format of the images of records; a run sets it for a network that reads images.
    """

    task: str
    cache_dir: str
    feature_lengths: Mapping[str, int]
    vocabulary: str | None = None
    extra_ids: int = 0
    kind: str = "triplet"
    layout: str = "records"
    chat_template: str | None = None
    fields: str | Mapping[str, str] = ""
    train_file: str | None = None
    validation_file: str | None = None
    responses_per_example: int = 1
    duplicates: str = "reject"
    long_prompts: str = "truncate"
    max_rejected_fraction: float = MAX_REJECTED_FRACTION
    pack: bool = False
    max_examples_per_row: int = 8
    row_lengths: Mapping[str, int] | None = None
    standardize_rewards: bool = True
    train_split: str = "train"
    eval_split: str = "validation"
    stored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    responses: str = "auto"
    ties: str = "auto"
    paired_lines: bool = False
    sampling: str = "uniform"
    sampling_field: str = "advantages"
    images: ImageFormat | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            if name not in self.feature_lengths:
                raise UserError(
                    f"TASK_FEATURE_LENGTHS needs 'inputs' and 'targets', got {dict(self.feature_lengths)}"
                )
        if "://" in self.cache_dir:
            raise UserError(
                f"CACHE_DIR {self.cache_dir} is an address, and a cache is written to a file system: mount the bucket and give the path"
            )
        object.__setattr__(self, "cache_dir", os.path.expanduser(self.cache_dir))
        for name, lengths in (
            ("feature_lengths", self.feature_lengths),
            ("row_lengths", self.row_lengths or {}),
        ):
            require_range(f"TaskData.{name}", "[2, inf)", **lengths)
        require_range(
            "TaskData",
            "[1, inf)",
            responses_per_example=self.responses_per_example,
            max_examples_per_row=self.max_examples_per_row,
        )
        require_range("TaskData", "[0, inf)", extra_ids=self.extra_ids)
        require_range("TaskData", "[0, 1]", max_rejected_fraction=self.max_rejected_fraction)
        require_one_of("TaskData", KINDS, kind=self.kind)
        require_one_of("TaskData", LONG_PROMPTS, long_prompts=self.long_prompts)
        require_one_of("TaskData", DUPLICATES, duplicates=self.duplicates)
        self.limits  # noqa: B018 (checked before anything is read)
        stored_fields.check_stored_fields(self.stored)
        example_sampling.check_mode(self.sampling)
        if self.responses not in RESPONSES:
            raise UserError(
                f"TaskData.responses must be one of {', '.join(RESPONSES)}, not {self.responses!r}"
            )

        if self.ties not in TIES:
            raise UserError(f"TaskData.ties must be one of {', '.join(TIES)}, not {self.ties!r}")

    @property
    def limits(self) -> Limits:
        """The limits of a cache that this run would make."""
        return Limits(
            self.feature_lengths["inputs"],
            self.feature_lengths["targets"],
            self.long_prompts,
            duplicates=self.duplicates,
        )

    def prepare(self) -> CacheMetadata:
        """Makes the cache unless it exists, checks that it has the stored arrays of this run, and returns its metadata.

        Raises:
          UserError: the cache differs, or lacks a split or a stored array that training or evaluation needs.
        """
        # Only the first process checks: it may make the cache while another process looks for it.
        if (
            distributed.broadcast_from_first(lambda: TaskCache.exists(self.cache_dir))
            and not self.train_file
        ):
            metadata = self.cache().metadata
            cache_checks.check_same_options(
                self.cache(), task=self.task, limits=self.limits, vocabulary=self._own_vocabulary()
            )
        else:
            metadata = self._make_cache()
            self.check_same_vocabulary()
        cache_checks.check_splits(self.cache(), self.train_split, self.eval_split)
        cache_checks.check_stored(self.cache(), self.train_split, self.eval_split, self.stored)
        # Reports now if nothing can be drawn.
        _ = self.sampled
        return metadata

    def cache(self) -> TaskCache:
        """Returns the cache in its current state."""
        return TaskCache(self.cache_dir)

    @functools.cached_property
    def sampled(self) -> Sampling | None:
        """The training examples that are drawn and how often; None if all are drawn equally."""
        return example_sampling.open_sampling(
            self.cache(),
            self.train_split,
            self.sampling,
            stored=self.stored,
            field=self.sampling_field,
        )

    def vocabulary_exists(self) -> bool:
        """Returns whether VOCABULARY names bytes, an address, or a file that exists; true if it is not given."""
        name = self.vocabulary or "bytes"
        return name == "bytes" or "://" in name or Path(name).exists()

    def check_same_vocabulary(self) -> None:
        """Refuses a cache with another vocabulary that happens to give the ids of this run, for example with other EXTRA_IDS."""
        cache_checks.check_same_vocabulary(self.cache(), self._own_vocabulary())

    def _own_vocabulary(self) -> Vocabulary | None:
        """Returns the vocabulary with which this run would make a cache; None if it cannot be determined here."""
        if self.vocabulary is None and self.task not in bundled_sources.BUNDLED:
            return cache_checks.vocabulary_of_task(self.task)
        name = self.vocabulary or "bytes"
        remote = "://" in name and not hub.is_address(name)
        if remote or not self.vocabulary_exists():
            # The cache was moved here with its own copy of the model.
            return None
        try:
            return vocabulary_from_spec(name, self.extra_ids)
        except UserError:
            if not hub.is_address(name):
                raise
            # Without network, the cache has its own copy of the vocabulary.
            return None

    def _make_cache(self) -> CacheMetadata:
        # Only files have images; a policy that reads them learns from a bundled task's text as well.
        images = self.images if self.train_file else None

        def make() -> None:
            cache_module.cache(
                self.task,
                self.cache_dir,
                vocabulary=self.vocabulary,
                extra_ids=self.extra_ids,
                max_input_length=self.feature_lengths["inputs"],
                max_target_length=self.feature_lengths["targets"],
                long_prompts=self.long_prompts,
                max_rejected_fraction=self.max_rejected_fraction,
                duplicates=self.duplicates,
                kind=self.kind,
                train_file=self.train_file,
                validation_file=self.validation_file,
                layout=self.layout,
                chat_template=self.chat_template,
                fields=[
                    f"{ours}={theirs}" for ours, theirs in layouts.parse_fields(self.fields).items()
                ],
                responses_per_example=self.responses_per_example,
                image_size=images.image_size if images else 0,
                patch_size=images.patch_size if images else 0,
            )

        distributed.broadcast_from_first(make)
        return self.cache().metadata

    def teacher(self) -> dict[str, Any] | None:
        """Returns the name of the stored teacher tokens and the facts about the teacher; None if the run reads none."""
        name = self.stored.get(stored_fields.TEACHER_TOP)
        if name is None:
            return None
        found = self.cache().teacher_tokens(self.train_split, name)
        return {"name": name, **found.info}

    def load_vocabulary(self) -> Vocabulary:
        """Returns the vocabulary of the cache."""
        return self.cache().vocabulary()

    def training_dataset(
        self,
        batch_size: int,
        seed: int,
        reference_scores: str | None,
        local_rows: Sequence[int] | None = None,
    ) -> Any:
        """Returns shuffled, endless batches with this process's rows of the global batch, all rows by default."""
        settings = DatasetSettings(
            **self._contents(batch_size, reference_scores),
            seed=seed,
            sampling=self.sampled,
            pack=self.pack,
            max_examples_per_row=self.max_examples_per_row,
            row_lengths=self.row_lengths if self.pack else None,
        )
        return make_dataset(self.cache(), self.train_split, settings, local_rows=local_rows)

    def evaluation_batches(
        self,
        batch_size: int,
        reference_scores: str | None,
        local_rows: Sequence[int] | None = None,
    ) -> Iterator[Any]:
        """Yields one pass over the evaluation split; the last batch is filled with empty rows."""
        settings = DatasetSettings(
            **self._contents(batch_size, reference_scores),
            shuffle=False,
            num_epochs=1,
            drop_remainder=False,
        )
        return iter(make_dataset(self.cache(), self.eval_split, settings, local_rows=local_rows))

    def _contents(self, batch_size: int, reference_scores: str | None) -> dict[str, Any]:
        """Returns the settings that training and evaluation share."""
        return {
            "feature_lengths": self.feature_lengths,
            "batch_size": batch_size,
            "standardize": self.standardize_rewards,
            "reference_scores": reference_scores,
            "stored": self.stored,
            "best_only": self.responses == "best",
            "skip_ties": self.ties == "drop",
            "paired_lines": self.paired_lines,
        }
