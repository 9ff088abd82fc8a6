"""Computes a teacher's most likely tokens at every target position of a cached task, once, for distillation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from jaxalign.annotation.cache_pass import CachePass, PassSettings
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError
from jaxalign.networks.policy import Policy
from jaxalign.objectives.distillation import top_log_probs
from jaxalign.parallel import distributed


def store_top_tokens(
    policy: Policy, params: Any, cache: TaskCache, name: str, settings: PassSettings, *, count: int
) -> None:
    """Stores the ``count`` most likely tokens of a teacher, and their log-probabilities, at every target position of a cache.

    Storage takes eight bytes per token and position. With 32 tokens, a position takes 256 bytes.

    Args:
      policy: the teacher's network.
      params: its parameters.
      cache: the cached task.
      name: the name of the set; an existing set of that name is replaced.
      settings: the splits, how to read them, and what is stored beside the tokens.
      count: k, at most the vocabulary's size.

    Raises:
      UserError: ``count`` is out of range, or log-probabilities are not finite.
    """
    size = policy.config.vocab_size
    if not 1 <= count <= size:
        raise UserError(f"top_tokens must be between 1 and the vocabulary's {size}, not {count}")

    def compute(params: Any, batch: Mapping[str, Any]) -> Any:
        tokens = top_log_probs(policy, params, batch, count)
        return tokens, batch["decoder_segment_ids"], batch["example_ids"]

    computed = CachePass(compute, params, settings)
    first = distributed.is_primary_process()
    for split in settings.splits_of(cache):
        with cache.teacher_tokens_writer(split, name, count) if first else nullcontext() as writer:
            for (ids, log_probs), segments, examples in computed.outputs(cache, split):
                if writer is not None:
                    present = segments > 0
                    writer.write(examples[examples >= 0], ids[present], log_probs[present])
            if writer is not None:
                writer.close({**settings.info, "top_tokens": count, "vocab_size": size})
