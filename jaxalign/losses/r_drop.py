"""The divergence of R-Drop (Liang et al. 2021, arXiv 2106.14448): two stochastic passes of one network must agree."""

from __future__ import annotations

import jax.numpy as jnp

from jaxalign.losses.distillation import Distributions, Divergences
from jaxalign.losses.masking import as_float32


def bidirectional_kl(
    first_log_probs: Distributions, second_log_probs: Distributions
) -> Divergences:
    """``1/2 [KL(p || q) + KL(q || p)] = 1/2 sum_v (p - q) (log p - log q)``, with gradients through both distributions.

    In this form no term is negative, arguments may be exchanged without a change in the last bit, and the divergence of equal
    distributions is exactly 0 with a gradient of exactly 0. The gradient with respect to the logits of p is
    ``1/2 [p (d - sum_v p d) + p - q]`` with ``d = log p - log q``.

    Args:
      first_log_probs: log p, normalised, in nats.
      second_log_probs: log q.
    """
    first, second = as_float32(first_log_probs, second_log_probs)
    # A token of probability 0 under both, such as one that is taken out of the softmax, contributes 0.
    possible = (first > -jnp.inf) | (second > -jnp.inf)
    first, second = jnp.where(possible, first, 0), jnp.where(possible, second, 0)
    return 0.5 * jnp.sum((jnp.exp(first) - jnp.exp(second)) * (first - second), axis=-1)
