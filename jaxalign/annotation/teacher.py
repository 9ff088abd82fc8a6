"""Computes a teacher's most likely tokens at every target position of a cached task, once, for distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.data import pipeline
from jaxalign.data.row_lengths import covering
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError
from jaxalign.networks.policy import Policy
from jaxalign.objectives.distillation import top_log_probs
from jaxalign.parallel import distributed, partitioning


def store_top_tokens(
    policy: Policy,
    params: Any,
    cache: TaskCache,
    name: str,
    *,
    count: int,
    splits: Sequence[str] | None,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    mesh: Mesh,
    info: Mapping[str, Any],
    row_lengths: Mapping[str, int] | None = None,
) -> None:
    """Stores the ``count`` most likely tokens of a teacher, and their log-probabilities, at every target position of a cache.

    Storage takes eight bytes per token and position. With 32 tokens, a position takes 256 bytes.

    Args:
      policy: the teacher's network.
      params: its parameters.
      cache: the cached task.
      name: the name of the set; an existing set of that name is replaced.
      count: k, at most the vocabulary's size.
      splits: the names of the splits; all by default.
      feature_lengths: the lengths of ``inputs`` and ``targets`` in tokens.
      batch_size: the number of global rows per forward pass; short examples share rows.
      mesh: the mesh to compute on.
      info: JSON that is stored beside the tokens.
      row_lengths: the lengths of packed rows, extended if an example needs it; ``feature_lengths`` by default.

    Raises:
      UserError: ``count`` is out of range, or log-probabilities are not finite.
    """
    size = policy.config.vocab_size
    if not 1 <= count <= size:
        raise UserError(f"top_tokens must be between 1 and the vocabulary's {size}, not {count}")

    def compute(params: Any, batch: Mapping[str, Any]) -> Any:
        tokens = top_log_probs(policy, params, batch, count)
        return tokens, batch["decoder_segment_ids"], batch["example_ids"]

    # Every process has the tokens of all rows; the first process writes them.
    compiled = jax.jit(compute, out_shardings=partitioning.replicated_sharding(mesh))
    rows = distributed.process_local_rows(mesh, batch_size)
    for split in splits or list(cache.metadata.splits):
        first = distributed.is_primary_process()
        with cache.teacher_tokens_writer(split, name, count) if first else nullcontext() as writer:
            for batch in pipeline.one_pass(
                cache,
                split,
                feature_lengths=feature_lengths,
                row_lengths=covering(cache.split(split), row_lengths),
                batch_size=batch_size,
                local_rows=rows,
            ):
                with partitioning.set_mesh(mesh):
                    found = jax.device_get(
                        compiled(params, partitioning.make_global_batch(mesh, batch))
                    )
                (ids, log_probs), segments, examples = found
                if writer is not None:
                    present = segments > 0
                    writer.write(examples[examples >= 0], ids[present], log_probs[present])
            if writer is not None:
                writer.close({**info, "top_tokens": count, "vocab_size": size})
