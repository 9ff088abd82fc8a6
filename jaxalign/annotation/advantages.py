"""Computes advantages A = r - V(x) of logged responses once, with a trained value network, and stores them beside the cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxalign.data import pipeline
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.recorded_vocabulary import RecordedVocabulary, require_same_vocabulary
from jaxalign.data.row_lengths import covering
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError, require_range
from jaxalign.interop.opening import open_run
from jaxalign.parallel import partitioning, row_devices
from jaxalign.runs.description import RewardStatistics
from jaxalign.runs.folder import Run, TrainedNetwork

UNITS = ("rewards", "feedback")


def advantages(
    *,
    value_checkpoint: str,
    cache_dir: str,
    name: str,
    units: str = "rewards",
    splits: list[str] | None = None,
    batch_size: int = 32,
    step: str = "",
) -> dict[str, float]:
    """Stores the advantage of every response of a cached task, which is its feedback minus the value of its prompt.

    The value network reads only prompts, without dropout. Therefore an advantage stays constant throughout training, as in A-LoL
    (Baheti et al. 2023, arXiv 2305.14718).

    Args:
      value_checkpoint: the run folder of a value network that was trained with objectives/value_regression.gin.
      cache_dir: the cached task.
      name: the name of the stored array. Training reads it with STORED_FIELDS = {'advantages': NAME}. An existing array of that name is
        replaced.
      units: 'rewards' for units of standardised reward, the deviation of the cache's training split; 'feedback' for the units of the
        data.
      splits: the splits to compute; by default all splits of the cache.
      batch_size: the number of rows per forward pass; short prompts share rows.
      step: the checkpoint: a number, 'best' or 'latest'; by default the best if one was kept, else the latest.

    Returns:
      The share of responses with a positive advantage, by split.

    Raises:
      UserError: the cache has no feedback or another vocabulary than the value network, or an advantage is not finite.
    """
    require_range("advantages", "[1, inf)", batch_size=batch_size)
    run = open_run(value_checkpoint, step)
    trained = run.value()
    cache = TaskCache(cache_dir)
    scale = _scale(cache, units)
    check_vocabulary(cache.metadata, cache_dir, run)
    say_other_cut(cache, run)
    mesh = row_devices.local_mesh()
    batch_size = row_devices.divisible_rows(mesh, batch_size)
    shares = {}
    for split in splits or list(cache.metadata.splits):
        found, present = _of_split(trained, cache, split, batch_size, mesh)
        if not np.all(np.isfinite(found)):
            raise UserError(
                f"{run.folder} gives NaN or infinite values for prompts of {cache_dir}, split {split}"
            )
        shares[split] = float((found[present] > 0).mean())
        cache.write_stored(
            split,
            name,
            (found / scale).astype(np.float32),
            {
                "what": "advantages: feedback minus the prompt's value",
                "units": units,
                "feedback_per_unit": scale,
                "positive_fraction": shares[split],
                "value_checkpoint": str(run.folder),
                "step": run.step,
            },
        )
        print(
            f"{split}: {shares[split]:.1%} of {int(present.sum())} responses have a positive advantage"
        )
    print(
        f"wrote advantages {name!r} in units of {units}, from {run.folder} (step {run.step}), beside {cache_dir}"
    )
    return shares


def _of_split(
    trained: TrainedNetwork,
    cache: TaskCache,
    split: str,
    batch_size: int,
    mesh: Mesh,
) -> tuple[Float[np.ndarray, "examples responses"], np.ndarray]:
    """Returns feedback minus value in units of raw feedback, 0 for absent responses, and a mask of the present responses."""
    shape = (len(cache.split(split)), cache.metadata.responses_per_example)
    found, present = np.zeros(shape), np.zeros(shape, bool)
    compiled = jax.jit(trained.network.values)
    statistics = _statistics(trained.run)
    for batch in packed_batches(cache, split, batch_size, trained.run.description.row_lengths):
        with partitioning.set_mesh(mesh):
            values = np.asarray(
                compiled(trained.params, partitioning.make_global_batch(mesh, batch)), np.float64
            )
        raw = values * statistics.std + statistics.mean
        ids = batch["example_ids"].reshape(-1)
        real = ids >= 0
        mask = batch["response_mask"].reshape(-1, shape[1])[real] > 0
        feedback = batch["feedback"].reshape(-1, shape[1])[real]
        found[ids[real]] = np.where(mask, feedback - raw[real, None], 0)
        present[ids[real]] = mask
    return found, present


def _statistics(run: Run) -> RewardStatistics:
    """Returns the deviation and mean that convert the value network's outputs to raw feedback."""
    in_feedback = run.description.units == "feedback"
    return (None if in_feedback else run.description.reward) or RewardStatistics()


def _scale(cache: TaskCache, units: str) -> float:
    """Returns the amount of raw feedback per unit of the stored advantages."""
    if units not in UNITS:
        raise UserError(f"units must be 'rewards' or 'feedback', not {units!r}")
    fields, statistics = cache.metadata.fields, cache.metadata.reward_statistics
    if "feedback" not in fields:
        raise UserError(
            f"advantages need feedback, and {cache.path} has none (it has: {', '.join(fields) or 'no fields'})"
        )
    if units == "feedback":
        return 1.0
    if statistics is None:
        raise UserError(
            f"{cache.path} has no training split to standardise by; give units='feedback'"
        )
    return statistics.std


def packed_batches(
    cache: TaskCache, split: str, batch_size: int, row_lengths: Mapping[str, int] | None
) -> Iterator[Any]:
    """Yields all examples of a split once, in order, with raw feedback. Several short examples share a row.

    The row length is that of the longest example, or the run's ``row_lengths`` if that is greater.
    """
    data = cache.split(split)
    lengths = {
        "inputs": int(data.facts.prompt_lengths.max),
        "targets": int(data.facts.response_lengths.max),
    }
    return pipeline.one_pass(
        cache,
        split,
        feature_lengths=lengths,
        row_lengths=covering(data, row_lengths),
        batch_size=batch_size,
    )


def say_other_cut(cache: TaskCache, run: Run) -> None:
    """Prints a warning on standard error if a cache's prompts were cut on another side than the run's, or to a shorter length."""
    cut = cache.metadata.describe_cut("by `jaxalign cache`")
    limits = cache.metadata.limits
    recorded = run.description.long_prompts or limits.long_prompts
    length = run.description.feature_lengths.get("inputs") or limits.max_input_length
    if cut and (recorded != limits.long_prompts or limits.max_input_length < length):
        print(
            f"warning: {cache.path}: {cut}, but the run {run.folder} was trained with long_prompts={recorded!r} and "
            f"{length} tokens",
            file=sys.stderr,
        )


def check_vocabulary(metadata: CacheMetadata, cache_dir: str, run: Run) -> None:
    """Raises UserError if a run and a cache have different vocabularies. A run converted without a vocabulary may pass."""
    recorded = run.recorded_vocabulary
    if recorded is not None:
        cached = RecordedVocabulary(metadata.vocabulary, cache_dir)
        require_same_vocabulary(f"the run {run.folder}", recorded, cached)
