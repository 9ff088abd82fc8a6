"""Losses on tokens: cross entropy, weights from the probabilities of a policy and its reference, and intuitive fine-tuning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.losses.hyperparameters import (
    HyperparameterError,
    require_nonnegative,
    require_one_of,
    require_probability,
)
from jaxalign.losses.masking import as_float32
from jaxalign.losses.policy_gradient import importance_weights
from jaxalign.losses.requirements import requires
from jaxalign.losses.segments import (
    PerToken,
    Segments,
    segment_lengths,
    segment_positions,
    segment_totals,
    shifted,
    suffix_sums,
)

# Added to the sum of a response's IFT weights, so that a fully fitted response has loss and gradient 0.
_SMALLEST_TOTAL = 1e-8


def cross_entropy(
    log_probs: PerToken,
    log_normalizers: PerToken,
    mean_log_probs: PerToken | None = None,
    *,
    vocab_size: int,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> PerToken:
    """Cross entropy with T5X's label smoothing and z-loss, from quantities that need no logits.

    With smoothing ``s`` the target puts ``1 - s`` on the label and ``s / (vocab_size - 1)`` on every other token; the entropy of that
    target is subtracted, so the minimum is 0. The z-loss ``z_loss * log(Z)^2`` keeps the softmax normaliser near 1 (Mesh TensorFlow;
    T5X, `losses.cross_entropy_with_logits`).

    Args:
      log_probs: log-probability of each target token, in nats.
      log_normalizers: ``log Z``, the log-sum-exp of each token's logits.
      mean_log_probs: mean over the vocabulary of the log-probabilities; needed only with smoothing.
      vocab_size: number of tokens in the softmax.
      z_loss: coefficient of the z-loss.
      label_smoothing: ``s``, in [0, 1).

    Raises:
      ValueError: if smoothing is asked for without ``mean_log_probs``.
    """
    log_probs, log_normalizers = as_float32(log_probs, log_normalizers)
    losses = -log_probs
    if label_smoothing:
        if mean_log_probs is None:
            raise ValueError("label smoothing needs mean_log_probs")
        (mean_log_probs,) = as_float32(mean_log_probs)
        confidence = 1.0 - label_smoothing
        low = label_smoothing / (vocab_size - 1)
        entropy = -(
            confidence * jnp.log(confidence) + (vocab_size - 1) * low * jnp.log(low + 1e-20)
        )
        smoothed = (confidence - low) * log_probs + low * vocab_size * mean_log_probs
        losses = -smoothed - entropy
    if z_loss:
        losses = losses + z_loss * jnp.square(log_normalizers)
    return losses


@requires(imitates=True)
def gold_loss(
    log_probs: PerToken,
    reference_log_probs: PerToken,
    segments: Segments,
    *,
    reward: str = "probability",
    horizon: int = 5,
    discount: float = 1.0,
    baseline: float = -10.0,
    min_reward: float = 0.0,
    importance: str = "policy",
    min_importance: float = 0.1,
) -> PerToken:
    """GOLD, Pang and He 2021, arXiv 2009.07839, algorithm 1: ``-b_t Q_t log pi(y_t)`` with constant ``b_t`` and ``Q_t``.

    ``Q_t = sum_{k=0..horizon} discount^k q_{t+k}``, where q comes from a model fitted by maximum likelihood, and tokens past the response's
    end count as probability 1. ``b_t = clip(pi_old(y_t), min_importance, 1)`` approximates the importance weight of the demonstrations.

    Args:
      log_probs: log pi of each target token, in nats.
      reference_log_probs: those of the frozen model fitted by maximum likelihood; constants.
      segments: the response of each token, 0 on padding.
      reward: 'probability': ``q = p`` (GOLD-s); 'log_probability': ``q = log(p + 1e-10) - baseline`` (GOLD-p).
      horizon: number of later tokens in the return of a token.
      discount: gamma.
      baseline: of GOLD-p, in nats.
      min_reward: each q is at least this (c in the paper).
      importance: where ``pi_old`` comes from. The paper's is a copy of the policy synchronised every few thousand steps, which lies between
        'policy', the policy itself of this step, without gradient, and 'reference', the copy of step 0.
      min_importance: u in the paper; 1 makes every weight 1.

    Raises:
      UserError: if a hyperparameter is out of range.
    """
    require_one_of("gold", "reward", reward, ("probability", "log_probability"))
    require_one_of("gold", "importance", importance, ("policy", "reference"))
    require_probability("gold", discount=discount, min_importance=min_importance)
    require_nonnegative("gold", horizon=horizon)
    log_probs, reference_log_probs = as_float32(log_probs, reference_log_probs)
    constant, reference = map(jax.lax.stop_gradient, (log_probs, reference_log_probs))

    def truncated(probabilities: Array) -> Array:
        rewards = probabilities
        if reward == "log_probability":
            rewards = jnp.log(probabilities + 1e-10) - baseline
        return jnp.maximum(rewards, min_reward)

    rewards = truncated(jnp.exp(reference))
    past_the_end = truncated(jnp.ones((), reference.dtype))
    returns = jnp.zeros_like(rewards)
    for step in range(horizon + 1):
        returns += discount**step * shifted(rewards, segments, step, past_the_end)
    old = constant if importance == "policy" else reference
    weights = jnp.clip(jnp.exp(old), min_importance, 1.0)
    return -weights * returns * log_probs


@requires(nonnegative=("feedback",))
def r_gold_loss(
    log_probs: PerToken, feedback: PerToken, *, min_importance: float = 0.1
) -> PerToken:
    """R-GOLD: ``-r max(sg(pi(y_t)), min_importance) log pi(y_t)``, a baseline of A-LoL (Baheti et al. 2023, arXiv 2305.14718).

    Args:
      log_probs: log pi of each target token, in nats.
      feedback: ``r >= 0`` of the token's response in its raw unit, since standardised rewards are negative for half of the responses; a
        constant. Objectives refuse data with negative feedback.
      min_importance: the smallest weight.

    Raises:
      UserError: if min_importance is not in [0, 1].
    """
    require_probability("r_gold", min_importance=min_importance)
    log_probs, feedback = as_float32(log_probs, feedback)
    weights = jnp.maximum(jnp.exp(log_probs), min_importance)
    return -jax.lax.stop_gradient(feedback * weights) * log_probs


def a_lol_seq_loss(
    log_probs: PerToken,
    log_ratios: PerToken,
    advantages: PerToken,
    *,
    ratio_clip: float | None = 0.9,
) -> PerToken:
    """A-LoL seq: ``-max(A, 0) clip(rho_t) log pi(y_t)`` with one importance weight a token (Baheti et al. 2023, arXiv 2305.14718).

    Args:
      log_probs: log pi of each target token, in nats.
      log_ratios: log pi - log pi_ref of each target token; gives no gradient.
      advantages: ``A = r - V_ref(x)`` of the token's response, constants in units of reward.
      ratio_clip: eps, which keeps ``rho_t = pi / pi_ref`` in ``[1 - eps, 1 + eps]``; 0 makes every weight 1, None does not clip.

    Raises:
      UserError: if eps is negative.
    """
    (advantages,) = as_float32(advantages)
    weights = importance_weights(log_ratios, ratio_clip=ratio_clip)
    (log_probs,) = as_float32(log_probs)
    return -jax.lax.stop_gradient(jnp.maximum(advantages, 0)) * weights * log_probs


def ift_code_loss(
    losses: PerToken, segments: Segments, *, discount: float, detach: bool = False
) -> PerToken:
    """IFT as its released code computes it (Hua et al. 2024, arXiv 2405.11870): tokens weighted by the discounted loss that follows them.

    With ``c_t = sum_{i >= t} discount^(i - t) ell_i`` over a response of n tokens, the loss of token t is ``n c_t / (sum c) * ell_t``, so
    its mean over the response is ``sum c ell / sum c``. Early tokens that are followed by a large loss count most.

    Args:
      losses: ``ell_t``, the negative log-probability of each target token under mixed decoder inputs, in nats.
      segments: the response of each token, 0 on padding.
      discount: gamma, in [0, 1). 0 makes every weight 1, which is cross entropy, as in the code; it is not the limit of the formula, which
        is ``sum ell^2 / sum ell``.
      detach: weights as constants. In the code they are not, and a token whose loss is small beside that of later ones gets its likelihood
        pushed down: ``dL / d ell_t = (c_t + b_t - L s_t) / sum c`` with ``b_t = sum_{i <= t} discount^(t - i) ell_i`` and
        ``s_t = sum_{k=0..t} discount^k``.

    Returns:
      Losses of the tokens; 0 on padding.

    Raises:
      UserError: if discount is not in [0, 1).
    """
    _require_discount("ift_code", discount)
    (losses,) = as_float32(losses)
    losses = jnp.where(segments > 0, losses, 0)
    if discount == 0:
        return losses
    following = suffix_sums(losses, segments, discount=discount)
    lengths = segment_lengths(segments).astype(losses.dtype)
    weights = lengths * following / (segment_totals(following, segments) + _SMALLEST_TOTAL)
    return (jax.lax.stop_gradient(weights) if detach else weights) * losses


def ift_algorithm_1_loss(
    losses: PerToken, segments: Segments, *, discount: float, detach: bool = False
) -> PerToken:
    """IFT as algorithm 1 of the paper prints it (arXiv 2405.11870): ``ell_t discount^(N - t) sum_{i >= t} ell_i``, N the last token.

    The exponent looks like a slip for ``i - t``; for comparison only. Arguments and errors as in `ift_code_loss`; a response's loss is the
    sum over its tokens.
    """
    _require_discount("ift_algorithm_1", discount)
    (losses,) = as_float32(losses)
    losses = jnp.where(segments > 0, losses, 0)
    later_tokens = segment_lengths(segments) - 1 - segment_positions(segments)
    powers = jnp.asarray(discount, losses.dtype) ** jnp.maximum(later_tokens, 0).astype(
        losses.dtype
    )
    weights = powers * suffix_sums(losses, segments)
    return (jax.lax.stop_gradient(weights) if detach else weights) * losses


def ift_equation_21_loss(losses: PerToken, segments: Segments) -> PerToken:
    """IFT as equation 21 of the paper prints it (arXiv 2405.11870): ``sum_n sum_{i >= n} ell_i = sum_i (i + 1) ell_i``, i from 0.

    Late tokens count most, the opposite of the released code; for comparison only. A response's loss is the sum over its tokens. Arguments
    as in `ift_code_loss`.
    """
    (losses,) = as_float32(losses)
    positions = segment_positions(segments).astype(losses.dtype)
    return jnp.where(segments > 0, (positions + 1) * losses, 0)


def _require_discount(method: str, discount: float) -> None:
    require_probability(method, discount=discount)
    if discount == 1:
        raise HyperparameterError(f"{method}.discount must be below 1")
