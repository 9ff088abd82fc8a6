"""From a task's name to the batches of a run: cache it if need be, find or make reference scores, open the datasets."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data import cache as cache_module
from jaxalign.data import example_sampling, pipeline, reference, registry, sources, teacher_tokens
from jaxalign.data.example_sampling import Sampling
from jaxalign.data.rejections import DataError
from jaxalign.data.vocabularies import Vocabulary, vocabulary_from_spec
from jaxalign.errors import UserError
from jaxalign.parallel import distributed

RESPONSES = ("auto", "all", "best")


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
      stored: {batch field: name of a stored array}, for fields of `data.reference.STORED_FIELDS`, and {'teacher_top': name of stored
        teacher tokens}.
      responses: which responses to a prompt are read: 'all'; 'best', the chosen one of a pair or that with the highest feedback; or 'auto',
        'best' where an objective that only imitates (sft, nll, gold, ift) meets pairs or ranked records, else 'all'.
      sampling: which training examples are drawn: 'uniform', 'positive', 'priority' or 'reward' (`data.example_sampling.open_sampling`).
      sampling_field: the stored field that 'positive' and 'priority' draw by.
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
    stored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    responses: str = "auto"
    sampling: str = "uniform"
    sampling_field: str = "advantages"

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            if name not in self.feature_lengths:
                raise UserError(
                    f"TASK_FEATURE_LENGTHS needs 'inputs' and 'targets', got {dict(self.feature_lengths)}"
                )
        reference.check_stored_fields(self.stored)
        example_sampling.check_mode(self.sampling)
        if self.responses not in RESPONSES:
            raise UserError(
                f"TaskData.responses must be one of {', '.join(RESPONSES)}, not {self.responses!r}"
            )

    def prepare(self) -> dict[str, Any]:
        """Makes the cache unless it is there, checks that it has what is stored for this run, and returns its metadata.

        Where examples are sampled, the metadata say under ``sampling`` how many are kept.

        Raises:
          UserError: the cache there is another one, or lacks a stored array that training or evaluation needs.
        """
        made = Path(self.cache_dir) / cache_module.METADATA_FILE
        # While another process looks the first may have made it.
        if distributed.first(made.exists) and not self.train_file:
            metadata = cache_module.load_metadata(self.cache_dir)
            self._check_same_cache(metadata)
        else:
            metadata = self._make_cache()
        self._check_stored()
        sampled = self._sampling()
        return metadata if sampled is None else {**metadata, "sampling": sampled.describe()}

    def _check_same_cache(self, metadata: Mapping[str, Any]) -> None:
        """Refuses a cache that would hold other examples if this run had made it. Its records are not read again."""
        if metadata["name"] != self.task:
            raise UserError(
                f"{self.cache_dir} caches task {metadata['name']!r}, not {self.task!r}; choose another cache_dir"
            )
        differences = [*_cut_differently(metadata, self)]
        wanted = self._wanted_vocabulary()
        found = self.load_vocabulary()
        if wanted is not None and wanted != found:
            differences.insert(0, f"vocabulary {_describe(found)} instead of {_describe(wanted)}")
        if differences:
            raise UserError(
                f"{self.cache_dir} was made with other options than this run has: {'; '.join(differences)}. Choose another "
                "cache_dir, delete that one to have it made anew, or give the options that it was made with."
            )

    def _wanted_vocabulary(self) -> Vocabulary | None:
        """The vocabulary this run would make a cache with; None if that cannot be told here."""
        if self.vocabulary is None and self.task not in sources.BUNDLED:
            # A task's own. Where seqio was not imported, nothing has registered the task.
            if "seqio" not in sys.modules:
                return None
            with contextlib.suppress(DataError):
                return getattr(registry.resolve_source(self.task), "vocabulary", None)
            return None
        name = self.vocabulary or "bytes"
        if name != "bytes" and not Path(name).exists():
            # The cache was moved here with its own copy.
            return None
        return vocabulary_from_spec(name, self.extra_ids)

    def _check_stored(self) -> None:
        def check(split: str) -> None:
            reference.read_stored_fields(self.cache_dir, split, self.stored)
            if reference.TEACHER_TOP in self.stored:
                name = self.stored[reference.TEACHER_TOP]
                teacher_tokens.open_teacher_tokens(self.cache_dir, split, name)

        check(self.train_split)
        if not self.eval_split:
            return
        try:
            check(self.eval_split)
        except DataError as error:
            # Said now, for the first evaluation may be an hour away.
            raise UserError(
                f"{error} Evaluation needs it too; eval_split = '' trains without."
            ) from error

    def _make_cache(self) -> dict[str, Any]:
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
                responses_per_example=self.responses_per_example,
            )

        distributed.first(make)
        return cache_module.load_metadata(self.cache_dir)

    def teacher(self) -> dict[str, Any] | None:
        """Who the stored teacher tokens are of; None if the run reads none."""
        name = self.stored.get(reference.TEACHER_TOP)
        if name is None:
            return None
        found = teacher_tokens.open_teacher_tokens(self.cache_dir, self.train_split, name)
        return {"name": name, **found.info}

    def load_vocabulary(self) -> Vocabulary:
        """The vocabulary of the cache."""
        return cache_module.load_vocabulary(self.cache_dir)

    def training_dataset(
        self,
        batch_size: int,
        seed: int,
        reference_scores: str | None,
        local_rows: Sequence[int] | None = None,
    ) -> Any:
        """Shuffled, endless batches: of the global batch the rows of this process, all by default."""
        return pipeline.make_dataset(
            self.cache_dir,
            self.train_split,
            feature_lengths=self.feature_lengths,
            batch_size=batch_size,
            seed=seed,
            local_rows=local_rows,
            reference_scores=reference_scores,
            stored=self.stored,
            sampling=self._sampling(),
            best_only=self.responses == "best",
            **self._options(),
        )

    def evaluation_batches(
        self,
        batch_size: int,
        reference_scores: str | None,
        local_rows: Sequence[int] | None = None,
    ) -> Iterator[Any]:
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
                local_rows=local_rows,
                standardize=self.standardize_rewards,
                reference_scores=reference_scores,
                stored=self.stored,
                best_only=self.responses == "best",
            )
        )

    def _sampling(self) -> Sampling | None:
        return example_sampling.open_sampling(
            self.cache_dir,
            self.train_split,
            self.sampling,
            stored=self.stored,
            field=self.sampling_field,
        )

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"standardize": self.standardize_rewards, "pack": self.pack}
        if self.pack:
            options |= {
                "max_examples_per_row": self.max_examples_per_row,
                "row_lengths": self.row_lengths,
            }
        return options


def _cut_differently(metadata: Mapping[str, Any], data: TaskData) -> Iterator[str]:
    """Options of a cache that left other tokens or records in it than this run's would have."""
    limits = metadata["limits"]

    def count(kind: str, reason: str) -> int:
        return sum(by_reason.get(reason, 0) for by_reason in metadata.get(kind, {}).values())

    prompts = count("notes", "truncated_prompts") + count("rejected", "long_prompt")
    responses = count("rejected", "long_response")
    for feature, key, cut in (
        ("inputs", "max_input_length", prompts),
        ("targets", "max_target_length", responses),
    ):
        if cut and limits[key] < data.feature_lengths[feature]:
            yield f"{key} {limits[key]}, which cut or rejected {cut} records, instead of {data.feature_lengths[feature]}"
    if prompts and limits["long_prompts"] != data.long_prompts:
        yield f"long_prompts {limits['long_prompts']!r} instead of {data.long_prompts!r}"
    repeated = count("rejected", "duplicate")
    if repeated and data.duplicates == "keep":
        yield f"duplicates 'reject', which dropped {repeated} records, instead of 'keep'"


def _describe(vocabulary: Vocabulary) -> str:
    spec = vocabulary.to_dict()
    name = f"sentencepiece {spec['sha256'][:12]}" if "sha256" in spec else spec["kind"]
    return f"{name} with {spec.get('extra_ids', 0)} extra ids"
