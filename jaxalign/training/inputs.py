"""From a task's name to the batches of a run: cache it if need be, find or make reference scores, open the datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign.data import cache as cache_module
from jaxalign.data import pipeline
from jaxalign.data.vocabularies import Vocabulary
from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskData:
    """The data of a run.

    Attributes:
      task: a bundled task, a task or mixture registered with seqio, or any name for the files below.
      cache_dir: the tokenised cache; made on first use.
      feature_lengths: ``inputs`` and ``targets``, tokens of a prompt and of one response, EOS included.
      vocabulary: 'bytes' or the path of a SentencePiece model; the task's own by default.
      extra_ids: sentinels after the vocabulary (100 for T5's).
      kind: record kind of the files.
      train_file: JSON Lines.
      validation_file: JSON Lines; without it a tenth of the training file's prompts.
      responses_per_example: above 1, records of one prompt are joined.
      duplicates: 'reject' or 'keep' repeated records.
      long_prompts: 'truncate', 'truncate_left' or 'reject'.
      max_rejected_fraction: above this share of bad records the run stops.
      pack: put several short examples into a row.
      max_examples_per_row: at most this many, when packing.
      row_lengths: lengths of packed rows, if not ``feature_lengths``.
      standardize_rewards: by the training split's stored mean and deviation.
      train_split: the split to train on.
      eval_split: the split for evaluation during training; '' for none.
    """

    task: str
    cache_dir: str
    feature_lengths: Mapping[str, int]
    vocabulary: str | None = None
    extra_ids: int = 0
    kind: str = "triplet"
    train_file: str | None = None
    validation_file: str | None = None
    responses_per_example: int = 1
    duplicates: str = "reject"
    long_prompts: str = "truncate"
    max_rejected_fraction: float = 0.05
    pack: bool = False
    max_examples_per_row: int = 8
    row_lengths: Mapping[str, int] | None = None
    standardize_rewards: bool = True
    train_split: str = "train"
    eval_split: str = "validation"

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            if name not in self.feature_lengths:
                raise UserError(
                    f"TASK_FEATURE_LENGTHS needs 'inputs' and 'targets', got {dict(self.feature_lengths)}"
                )

    def prepare(self) -> dict[str, Any]:
        """Makes the cache unless it is there, and returns its metadata."""
        if (Path(self.cache_dir) / cache_module.METADATA_FILE).exists() and not self.train_file:
            metadata = cache_module.load_metadata(self.cache_dir)
            if metadata["name"] != self.task:
                raise UserError(
                    f"{self.cache_dir} caches task {metadata['name']!r}, not {self.task!r}; choose another cache_dir"
                )
            return metadata
        if jax.process_index() == 0:
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
                responses_per_example=self.responses_per_example,
            )
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("task cache")
        return cache_module.load_metadata(self.cache_dir)

    def load_vocabulary(self) -> Vocabulary:
        """The vocabulary of the cache."""
        return cache_module.load_vocabulary(self.cache_dir)

    def training_dataset(self, batch_size: int, seed: int, reference_scores: str | None) -> Any:
        """Shuffled, endless batches of this process's share."""
        return pipeline.make_dataset(
            self.cache_dir,
            self.train_split,
            feature_lengths=self.feature_lengths,
            batch_size=batch_size,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            reference_scores=reference_scores,
            **self._options(),
        )

    def evaluation_batches(self, batch_size: int, reference_scores: str | None) -> Iterator[Any]:
        """One pass over the evaluation split; the last batch is filled with empty rows."""
        return iter(
            pipeline.make_dataset(
                self.cache_dir,
                self.eval_split,
                feature_lengths=self.feature_lengths,
                batch_size=batch_size,
                shuffle=False,
                num_epochs=1,
                drop_remainder=False,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                standardize=self.standardize_rewards,
                reference_scores=reference_scores,
            )
        )

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"standardize": self.standardize_rewards, "pack": self.pack}
        if self.pack:
            options |= {
                "max_examples_per_row": self.max_examples_per_row,
                "row_lengths": self.row_lengths,
            }
        return options
