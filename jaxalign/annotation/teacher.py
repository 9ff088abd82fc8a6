"""A teacher's likeliest tokens at every target position of a cached task, computed once for distillation."""

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
    """Stores the ``count`` likeliest tokens of a teacher, and their log-probabilities, at every target position of a cache.

    Eight bytes a token and position: at 32 tokens, 256 bytes a position.

    Args:
      policy: the teacher's network.
      params: its parameters.
      cache: the cached task.
      name: of the set; one of that name is replaced.
      count: k, at most the vocabulary's size.
      splits: names; all by default.
      feature_lengths: ``inputs`` and ``targets`` in tokens.
      batch_size: global rows per forward pass; short examples share rows.
      mesh: where to compute.
      info: JSON kept beside the tokens.
      row_lengths: of packed rows, made longer where an example needs it; ``feature_lengths`` by default.

    Raises:
      UserError: ``count`` is out of range, or log-probabilities are not finite.
    """
    size = policy.config.vocab_size
    if not 1 <= count <= size:
        raise UserError(f"top_tokens must be between 1 and the vocabulary's {size}, not {count}")

    def compute(params: Any, batch: Mapping[str, Any]) -> Any:
        tokens = top_log_probs(policy, params, batch, count)
        return tokens, batch["decoder_segment_ids"], batch["example_ids"]

    # Every process sees the tokens of all rows; the first one writes them.
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
