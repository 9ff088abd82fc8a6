"""Losses that fit a scalar reward to preferences between two responses to one prompt.

Only differences of rewards enter, so a reward is known up to a constant per prompt; `jaxalign.evaluation.reward_calibration` turns it
into the units of absolute feedback.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.masking import as_float32

PerComparison = Float[Array, "*comparisons"]


def bradley_terry_loss(
    chosen_rewards: PerComparison,
    rejected_rewards: PerComparison,
    margins: PerComparison | float = 0.0,
) -> PerComparison:
    """The negative log-likelihood of a preference: ``-log sigmoid(r_w - r_l - margin)``.

    Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1; with a margin Touvron et al. 2023, arXiv 2307.09288,
    equation 2. ``log 2`` at equal rewards without a margin; the best rewards have ``sigmoid(r_w - r_l - margin) = P(w beats l)``.

    Args:
      chosen_rewards: ``r_w``, rewards of the preferred responses, in nats (log-odds of winning).
      rejected_rewards: ``r_l`` of the others.
      margins: by how much the preferred response should at least win, in the same unit; treated as a constant.
    """
    chosen_rewards, rejected_rewards = as_float32(chosen_rewards, rejected_rewards)
    if isinstance(margins, (int, float)):
        return jax.nn.softplus(rejected_rewards - chosen_rewards + margins)
    (margins,) = as_float32(margins)
    return jax.nn.softplus(rejected_rewards - chosen_rewards + jax.lax.stop_gradient(margins))


def won(first: PerComparison, second: PerComparison) -> PerComparison:
    """1 where the first number is larger, 1/2 where they are equal, else 0; its mean over preferences is a score's accuracy."""
    first, second = as_float32(first, second)
    return 0.5 * (1.0 + jnp.sign(first - second))
