"""Offline policy gradient on whole responses: A-LoL and its relatives (Baheti et al. 2023, arXiv 2305.14718, ICLR 2024).

The whole response is one action. Its advantage is its reward minus the value of its prompt under the frozen reference policy, computed
once; importance weights ``rho = pi / pi_ref`` are constants. `token_level.a_lol_seq_loss` has weights of tokens. All losses are averaged
over responses, those with an advantage of 0 included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.hyperparameters import require_nonnegative
from jaxalign.losses.masking import as_float32
from jaxalign.losses.requirements import requires

PerResponse = Float[Array, "examples responses"]

# Nats. Unclipped importance weights stop growing here, so that float32 cannot overflow.
_MAX_LOG_RATIO = 60.0


@requires(imitates=True)
def nll_loss(log_probs: PerResponse) -> PerResponse:
    """``-log pi(y|x)``: fine-tuning, as a mean over responses instead of tokens; A-LoL's baseline.

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
    """
    (log_probs,) = as_float32(log_probs)
    return -log_probs


def importance_weights(log_ratios: PerResponse, *, ratio_clip: float | None) -> PerResponse:
    """``rho = pi(y|x) / pi_ref(y|x)`` clipped to ``[1 - eps, 1 + eps]``, without gradient.

    Args:
      log_ratios: log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats.
      ratio_clip: eps; 0 makes every weight 1, None does not clip (up to e^60, where float32 would overflow).

    Raises:
      UserError: if eps is negative.
    """
    (log_ratios,) = as_float32(log_ratios)
    ratios = jnp.exp(jnp.minimum(log_ratios, _MAX_LOG_RATIO))
    if ratio_clip is not None:
        require_nonnegative("importance_weights", ratio_clip=ratio_clip)
        ratios = jnp.clip(ratios, 1 - ratio_clip, 1 + ratio_clip)
    return jax.lax.stop_gradient(ratios)


def a_lol_loss(
    log_probs: PerResponse,
    log_ratios: PerResponse,
    advantages: PerResponse,
    *,
    ratio_clip: float | None = 0.9,
) -> PerResponse:
    """A-LoL: ``-max(A, 0) clip(rho) log pi(y|x)`` (arXiv 2305.14718).

    Its gradient is ``-max(A, 0) clip(rho) grad log pi``: unlike PPO's, a weight outside the clip range still passes gradient. With logged
    responses from pi_ref and without clip or truncation this is the policy gradient of expected reward.

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
      log_ratios: log pi(y|x) - log pi_ref(y|x); gives no gradient.
      advantages: ``A = r - V_ref(x)``, constants in units of reward.
      ratio_clip: eps, as in `importance_weights`.

    Raises:
      UserError: if eps is negative.
    """
    weights = importance_weights(log_ratios, ratio_clip=ratio_clip)
    return _weighted_nll(log_probs, weights * _positive(advantages))


def a_lol_reference_free_loss(
    log_probs: PerResponse, advantages: PerResponse, *, positive_only: bool = True
) -> PerResponse:
    """A-LoL without importance weights: ``-max(A, 0) log pi(y|x)``, with no reference policy in training (arXiv 2305.14718).

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
      advantages: ``A = r - V_ref(x)``, constants in units of reward.
      positive_only: False uses A as it is, like the authors' code, whose sampler never draws a response with A <= 0; on unfiltered data
        such responses are then pushed down without bound.
    """
    (constants,) = as_float32(advantages)
    return _weighted_nll(log_probs, _positive(constants) if positive_only else constants)


def a_lol_kl_loss(
    log_probs: PerResponse,
    log_ratios: PerResponse,
    advantages: PerResponse,
    *,
    beta: float,
    positive_only: bool = True,
) -> PerResponse:
    """A-LoL KL: ``-max(A, 0) log pi(y|x) + beta (log pi(y|x) - log pi_ref(y|x))``, no importance weight (arXiv 2305.14718).

    Despite its name it is a threshold on the advantage and not a regulariser: the gradient is that of the reference-free loss with weight
    ``max(A, 0) - beta``, so responses with a smaller advantage are pushed down and a larger beta takes entropy away.

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
      log_ratios: log pi(y|x) - log pi_ref(y|x); only log pi in it may carry a gradient.
      advantages: ``A = r - V_ref(x)``, constants in units of reward.
      beta: units of reward.
      positive_only: leave out responses with A <= 0, which the authors' sampler never draws. False keeps their term ``beta log pi``. Like
        that of responses with ``0 < A < beta`` it has no lower bound, but there are many more of them.

    Raises:
      UserError: if beta is negative.
    """
    require_nonnegative("a_lol_kl", beta=beta)
    log_ratios, constants = as_float32(log_ratios, advantages)
    losses = _weighted_nll(log_probs, _positive(constants)) + beta * log_ratios
    return jnp.where(constants > 0, losses, 0) if positive_only else losses


@requires(nonnegative=("feedback",))
def r_lol_loss(
    log_probs: PerResponse,
    log_ratios: PerResponse,
    feedback: PerResponse,
    *,
    ratio_clip: float | None = 0.9,
) -> PerResponse:
    """R-LoL: ``-r clip(rho) log pi(y|x)``, the reward in place of the advantage (arXiv 2305.14718).

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
      log_ratios: log pi(y|x) - log pi_ref(y|x); gives no gradient.
      feedback: ``r >= 0`` in its raw unit, since standardised rewards are negative for half of the responses; a constant. Objectives refuse
        data with negative feedback.
      ratio_clip: eps, as in `importance_weights`.

    Raises:
      UserError: if eps is negative.
    """
    (feedback,) = as_float32(feedback)
    return _weighted_nll(
        log_probs, importance_weights(log_ratios, ratio_clip=ratio_clip) * feedback
    )


def _positive(advantages: PerResponse) -> PerResponse:
    (constants,) = as_float32(advantages)
    return jnp.maximum(constants, 0)


def _weighted_nll(log_probs: PerResponse, weights: PerResponse) -> PerResponse:
    (log_probs,) = as_float32(log_probs)
    return -jax.lax.stop_gradient(weights) * log_probs
