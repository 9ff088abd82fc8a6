"""Scores prefixes of responses with the Q-values and with the reward head of a goal-conditioned reward model.

If the reward head at a prefix is as accurate as Q, the goal adds no information, so compare both (arXiv 2407.13887).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxalign.inference.rows import Tokens, by_batch, jitted
from jaxalign.losses import goal_conditioning


class PrefixScores(NamedTuple):
    """The scores of every prefix of every response; entry t belongs to the first t tokens.

    Attributes:
      values: Q-values, which are cosines with the goal.
      rewards: the outputs of the reward head.
      mask: marks the prefixes that exist; the last prefix of a response lacks only its EOS.
    """

    values: Float[np.ndarray, "responses length"]
    rewards: Float[np.ndarray, "responses length"]
    mask: Bool[np.ndarray, "responses length"]


def goal_vector(
    network: Any,
    params: Any,
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    *,
    batch_size: int = 32,
) -> Float[np.ndarray, " emb"]:
    """Returns the mean last state of good responses, for example of all preferred responses in the training data.

    Args:
      network: a network with ``prefix_states(params, batch)``, such as `jaxalign.networks.reward.DecoderRewardNetwork`.
      params: its parameters; the vector must be recomputed after any training.
      prompts, responses: token ids, EOS included; one response per prompt.
    """
    total, count = 0.0, 0
    for index, batch in by_batch(prompts, [[response] for response in responses], batch_size):
        states, mask = jitted(network, "prefix_states")(params, batch)
        last = np.asarray(mask)[: len(index), 0].sum(axis=1) - 1
        total = total + np.asarray(states, np.float64)[np.arange(len(index)), 0, last].sum(axis=0)
        count += len(index)
    return np.asarray(total / max(count, 1), np.float32)


def score_prefixes(
    network: Any,
    params: Any,
    goal: Float[np.ndarray, " emb"],
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    *,
    batch_size: int = 32,
) -> PrefixScores:
    """Computes Q and the reward of every prefix; arguments as in `goal_vector`."""
    shape = (len(responses), max((len(response) for response in responses), default=0))
    values, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    mask = np.arange(shape[1]) < np.array([len(response) for response in responses])[:, None]
    for index, batch in by_batch(prompts, [[response] for response in responses], batch_size):
        states, _ = jitted(network, "prefix_states")(params, batch)
        states = states[: len(index), 0, : shape[1]]
        length = states.shape[1]
        values[index, :length] = goal_conditioning.prefix_values(states, jnp.asarray(goal))
        rewards[index, :length] = network.head(params, states)
    return PrefixScores(np.where(mask, values, 0), np.where(mask, rewards, 0), mask)
