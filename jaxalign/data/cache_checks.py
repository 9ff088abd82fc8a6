"""Whether a cache that exists is the one that a run would make, and has the splits and stored arrays that the run reads."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping

from jaxalign.data import stored_fields, task_registry
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.tokenization import Limits
from jaxalign.data.vocabularies import Vocabulary
from jaxalign.errors import UserError


def check_same_options(
    cache: TaskCache, *, task: str, limits: Limits, vocabulary: Vocabulary | None
) -> None:
    """Refuses a cache whose examples would differ if it were made with these options. The records are not read again.

    Args:
      cache: the cache.
      task: the name of the task.
      limits: the limits of the run.
      vocabulary: the vocabulary of the run; None if it cannot be determined.

    Raises:
      UserError: the cache differs; the message lists the options that do.
    """
    metadata = cache.metadata
    if metadata.name != task:
        raise UserError(
            f"{cache.path} caches task {metadata.name!r}, not {task!r}; set another one with --CACHE_DIR=..."
        )
    differences = [*_cut_differently(metadata, limits)]
    found = cache.vocabulary()
    if vocabulary is not None and vocabulary != found:
        differences.insert(0, f"vocabulary {_describe(found)} instead of {_describe(vocabulary)}")
    if differences:
        raise UserError(
            f"{cache.path} was made with other options than this run has: {'; '.join(differences)}. Choose another "
            "cache_dir, delete that one to have it made anew, or give the options that it was made with."
        )


def check_same_vocabulary(cache: TaskCache, vocabulary: Vocabulary | None) -> None:
    """Refuses a cache with another vocabulary than the run's; None stands for a vocabulary that cannot be determined."""
    found = cache.vocabulary()
    if vocabulary is not None and vocabulary != found:
        raise UserError(
            f"{cache.path} was made with vocabulary {_describe(found)}, and this run says {_describe(vocabulary)}; give the same, or "
            "another --CACHE_DIR=..."
        )


def vocabulary_of_task(task: str) -> Vocabulary | None:
    """Returns the vocabulary of a registered task; None if the task has none or is not registered."""
    # If seqio was not imported, nothing has registered the task.
    if "seqio" not in sys.modules:
        return None
    with contextlib.suppress(DataError):
        return getattr(task_registry.resolve_source(task), "vocabulary", None)
    return None


def check_splits(cache: TaskCache, train_split: str, eval_split: str) -> None:
    """Refuses a cache that lacks a split of the run; '' for no evaluation."""
    splits = cache.metadata.splits
    for option, split in (("train_split", train_split), ("eval_split", eval_split)):
        if split and split not in splits:
            without = "; eval_split = '' trains without one" if option == "eval_split" else ""
            raise UserError(
                f"{cache.path} has no split {split!r}; it has {', '.join(splits)}. Give a file with records for it "
                f"(validation_file), or set TaskData.{option} to one that is there{without}"
            )


def check_stored(
    cache: TaskCache, train_split: str, eval_split: str, stored: Mapping[str, str]
) -> None:
    """Refuses a cache that lacks a stored array of the run.

    Raises:
      UserError: an array is missing or does not fit; it is reported now for evaluation too, which may come an hour later.
    """

    def check(split: str) -> None:
        cache.stored_by_field(split, stored)
        if stored_fields.TEACHER_TOP in stored:
            cache.teacher_tokens(split, stored[stored_fields.TEACHER_TOP])

    check(train_split)
    if not eval_split:
        return
    try:
        check(eval_split)
    except DataError as error:
        raise UserError(
            f"{error} Evaluation needs it too; --gin.TaskData.eval_split= (empty) trains without."
        ) from error


def _cut_differently(metadata: CacheMetadata, wanted: Limits) -> Iterator[str]:
    """Yields the options of a cache that caused tokens or records to differ from those that this run would keep."""
    limits = metadata.limits
    prompts = metadata.noted("truncated_prompts") + metadata.rejected_because("long_prompt")
    responses = metadata.rejected_because("long_response")
    for name, found, needed, cut in (
        ("max_input_length", limits.max_input_length, wanted.max_input_length, prompts),
        ("max_target_length", limits.max_target_length, wanted.max_target_length, responses),
    ):
        if cut and found < needed:
            yield f"{name} {found}, which cut or rejected {cut} records, instead of {needed}"
    if prompts and limits.long_prompts != wanted.long_prompts:
        yield f"long_prompts {limits.long_prompts!r} instead of {wanted.long_prompts!r}"
    repeated = metadata.rejected_because("duplicate")
    if repeated and wanted.duplicates == "keep":
        yield f"duplicates 'reject', which dropped {repeated} records, instead of 'keep'"


def _describe(vocabulary: Vocabulary) -> str:
    spec = vocabulary.to_dict()
    name = f"{spec['kind']} {spec['sha256'][:12]}" if "sha256" in spec else spec["kind"]
    return f"{name} with {spec.get('extra_ids', 0)} extra ids"
