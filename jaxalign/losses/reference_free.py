"""Losses on pairs of responses that need no reference policy, on log-probabilities per token.

``m_w`` and ``m_l`` are log pi(y|x) / n of the preferred and of the other response: the mean log-probability of a token, EOS included, in
nats. All arrays are ``[pairs]``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.hyperparameters import require_nonnegative, require_positive
from jaxalign.losses.pairwise import per_token

PerPair = Float[Array, " pairs"]
# The log-probability of a token above which its odds are those of this one: float32 rounds the probability to 1.
_MOST = -1e-6


def orpo_loss(
    chosen_log_probs: PerPair,
    rejected_log_probs: PerPair,
    chosen_lengths: PerPair,
    rejected_lengths: PerPair,
    *,
    weight: float,
) -> PerPair:
    """ORPO: ``-m_w - lambda log sigmoid(log odds(m_w) - log odds(m_l))``, Hong et al. 2024, arXiv 2403.07691, equations 6 and 7.

    ``odds(m) = exp(m) / (1 - exp(m))``. The first term is the cross entropy of supervised fine-tuning, by response.

    Args:
      chosen_log_probs: log pi(y_w|x), summed over tokens, in nats.
      rejected_log_probs: log pi(y_l|x).
      chosen_lengths: tokens of y_w, EOS included.
      rejected_lengths: tokens of y_l.
      weight: ``lambda``.
    """
    require_nonnegative("orpo", weight=weight)
    chosen = per_token(chosen_log_probs, chosen_lengths)
    rejected = per_token(rejected_log_probs, rejected_lengths)
    return -chosen + weight * jax.nn.softplus(_log_odds(rejected) - _log_odds(chosen))


def simpo_loss(
    chosen_log_probs: PerPair,
    rejected_log_probs: PerPair,
    chosen_lengths: PerPair,
    rejected_lengths: PerPair,
    *,
    beta: float,
    gamma: float,
) -> PerPair:
    """SimPO: ``-log sigmoid(beta (m_w - m_l) - gamma)``, Meng et al. 2024, arXiv 2405.14734, equation 6.

    Args:
      chosen_log_probs: log pi(y_w|x), summed over tokens, in nats.
      rejected_log_probs: log pi(y_l|x).
      chosen_lengths: tokens of y_w, EOS included.
      rejected_lengths: tokens of y_l.
      beta: the scale of the reward, per nat and token.
      gamma: the margin by which the reward of y_w shall exceed that of y_l.
    """
    require_positive("simpo", beta=beta)
    require_nonnegative("simpo", gamma=gamma)
    chosen = per_token(chosen_log_probs, chosen_lengths)
    rejected = per_token(rejected_log_probs, rejected_lengths)
    return jax.nn.softplus(gamma - beta * (chosen - rejected))


def _log_odds(log_probs: PerPair) -> PerPair:
    log_probs = jnp.minimum(log_probs, _MOST)
    return log_probs - jnp.log(-jnp.expm1(log_probs))
