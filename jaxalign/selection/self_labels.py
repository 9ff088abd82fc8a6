"""Preferences that a policy assigns to pairs of its own samples, as in SPA (arXiv 2406.04412)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.losses.hyperparameters import (
    require_positive,
)
from jaxalign.losses.masking import as_float32
from jaxalign.losses.self_annotation import Samples


class SelfLabels(NamedTuple):
    """Labels of sampled responses, all ``[prompts]``.

    Attributes:
      chosen: the index of the preferred sample.
      rejected: the index of the other sample; equal to ``chosen`` if a prompt has fewer than two samples, or only equal ones.
      margins: the implicit-reward difference in nats (divided by beta), at least 0.
      probabilities: the probability that the chosen sample is preferred.
    """

    chosen: Int[Array, " prompts"]
    rejected: Int[Array, " prompts"]
    margins: Float[Array, " prompts"]
    probabilities: Float[Array, " prompts"]


def self_labels(
    log_probs: Samples,
    initial_log_probs: Samples,
    mask: Bool[Array, "prompts samples"],
    *,
    beta: float,
) -> SelfLabels:
    """Labels the samples with the highest and lowest implicit reward of the sampling policy (arXiv 2406.04412, equations 7-8).

    The reward is measured against the *initial* policy in every round. If it is measured against the policy of the previous round, the
    labels lose their information and the rounds collapse.

    Args:
      log_probs: log pi(y|x) under the policy of the previous round, summed over tokens, in nats.
      initial_log_probs: the same under the fine-tuned model that all rounds started from.
      mask: marks the samples that exist and are distinct.
      beta: the inverse temperature, per nat; it does not change the labels.
    """
    require_positive("self_labels", beta=beta)
    log_probs, initial_log_probs = as_float32(log_probs, initial_log_probs)
    rewards = log_probs - initial_log_probs
    chosen = jnp.argmax(jnp.where(mask, rewards, -jnp.inf), axis=1)
    rejected = jnp.argmin(jnp.where(mask, rewards, jnp.inf), axis=1)
    rows = jnp.arange(rewards.shape[0])
    margins = jnp.where(mask.any(axis=1), rewards[rows, chosen] - rewards[rows, rejected], 0)
    return SelfLabels(chosen, rejected, margins, jax.nn.sigmoid(beta * margins))
