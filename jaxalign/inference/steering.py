"""Steers decoding by a goal-conditioned reward model (arXiv 2407.13887): the value of a prefix is the cosine of its state with a goal."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from jaxalign.losses.goal_conditioning import cosine
from jaxalign.networks.decoding_scores import PrefixValue
from jaxalign.networks.reward import DecoderRewardNetwork
from jaxalign.networks.shapes import AnyArray, Params


def goal_score(
    network: DecoderRewardNetwork,
    params: Params,
    goal: Float[AnyArray, " emb"],
    weight: float,
    num_candidates: int,
) -> PrefixValue:
    """Returns the decoding score ``cos(state of the prefix, goal)``.

    Args:
      network, params: the reward model; its head is not read.
      goal: from `losses.goal_conditioning.goal_vector`.
      weight: nats per unit of cosine.
      num_candidates: the most probable tokens of each sequence whose prefixes are valued; see `decoding_scores.PrefixValue`.
    """
    return PrefixValue(
        params, jnp.float32(weight), jnp.asarray(goal), network.config, _cosine, num_candidates
    )


def _cosine(goal: Any, states: Any) -> Any:
    return cosine(states, goal)
