"""Regressions of the log-ratio on the reward: relatives of DRO that replace the soft value V(x) in different ways.

KL-regularised reward has its optimum where ``r - V(x) = tau l`` for every response, ``V*(x) = tau log E_{y~pi_ref} exp(r/tau)``. Here V is
0, a function of the other responses to the prompt, or an estimate from samples of the reference policy; it is never learned. In all losses
``l`` is log pi(y|x) - log pi_ref(y|x) in nats, and everything but log pi is a constant.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError
from jaxalign.losses.dro import policy_loss, value_target
from jaxalign.losses.hyperparameters import (
    HyperparameterError,
    require_nonnegative,
    require_one_of,
    require_positive,
)
from jaxalign.losses.masking import as_float32
from jaxalign.losses.prompt_groups import prompt_means, require_responses, responses_in_groups
from jaxalign.losses.requirements import requires

PerResponse = Float[Array, "examples responses"]
Mask = Bool[Array, "examples responses"]
ReferenceRewards = Float[Array, "examples samples"]

QUANTILE_TRANSFORMS = ("identity", "log", "normal")
LOG_PARTITIONS = ("exact", "approximate", "samples")


def zero_value_loss(
    log_ratios: PerResponse, rewards: PerResponse, *, temperature: float
) -> PerResponse:
    """DRO without a value: ``(tau l - r)^2``. An ablation; "UNA-MSE" is the same loss (attributed to arXiv 2507.04136, not checked).

    Its optimum over normalised policies is not the KL-regularised one unless V*(x) = 0 for every prompt.

    Args:
      log_ratios: ``l``, summed over tokens.
      rewards: ``r``, standardised.
      temperature: ``tau > 0``, reward units per nat.

    Raises:
      UserError: if temperature is not positive.
    """
    require_positive("zero_value", temperature=temperature)
    return jnp.square(value_target(log_ratios, rewards, temperature=temperature))


@requires(min_responses=2)
def agro_loss(
    log_ratios: PerResponse, rewards: PerResponse, mask: Mask, *, temperature: float
) -> tuple[Float[Array, " examples"], Float[Array, " examples"]]:
    """AGRO with a leave-one-out baseline, arXiv 2503.19612 (formula from memory): half the variance of ``z = r - tau l``.

    ``1/2 Var(z)`` over the n responses to a prompt, unbiased (1 / (n - 1)). Divided by tau, its gradient is
    ``-(1/n) sum_j (z_j - mean of the other z) grad log pi(y_j|x)``. At n = 2 this is DRO's two-sample loss. The optimum is the
    KL-regularised policy pi_ref exp(r/tau), normalised, for any behaviour policy with full support.

    Args:
      log_ratios: ``l``, summed over tokens.
      rewards: ``r``, standardised.
      mask: which responses exist; a prompt with a single one has no variance and gets weight 0.
      temperature: ``tau > 0``, reward units per nat.

    Returns:
      Losses and weights, one per prompt.

    Raises:
      UserError: if temperature is not positive, or there is a single response per prompt.
    """
    require_positive("agro", temperature=temperature)
    require_responses("agro", log_ratios.shape[-1], 2)
    targets = value_target(log_ratios, rewards, temperature=temperature)
    grouped = responses_in_groups(mask, 2)
    targets = jnp.where(grouped, targets, 0)
    deviations = jnp.where(grouped, targets - prompt_means(targets, grouped), 0)
    others = jnp.maximum(jnp.sum(grouped, axis=-1) - 1, 1)
    losses = 0.5 * jnp.sum(jnp.square(deviations), axis=-1) / others
    return losses, jnp.any(grouped, axis=-1).astype(losses.dtype)


@requires(min_responses=2)
def kimi_loss(
    log_probs: PerResponse,
    log_ratios: PerResponse,
    rewards: PerResponse,
    mask: Mask,
    *,
    temperature: float,
) -> tuple[PerResponse, PerResponse]:
    """The policy loss of Kimi k1.5, arXiv 2501.12599 (from secondary sources): DRO's with the mean reward of the prompt for V.

    ``-(r - rbar) log pi + (tau/2) l^2``. V*(x) tends to the mean reward of pi_ref for large tau; with
    logged responses of another policy the bias stays.
    In the on-line method the reference is the previous iterate; here it is fixed.

    Args:
      log_probs: log pi(y|x), summed over tokens.
      log_ratios: ``l``; only log pi in it may carry a gradient.
      rewards: ``r``, standardised.
      mask: which responses exist; those to a prompt with a single one get weight 0.
      temperature: ``tau > 0``, reward units per nat.

    Returns:
      Losses and weights.

    Raises:
      UserError: if temperature is not positive, or there is a single response per prompt.
    """
    require_positive("kimi", temperature=temperature)
    require_responses("kimi", log_ratios.shape[-1], 2)
    (rewards,) = as_float32(rewards)
    grouped = responses_in_groups(mask, 2)
    means = jnp.broadcast_to(prompt_means(rewards, mask), rewards.shape)
    losses = policy_loss(log_probs, log_ratios, rewards, means, temperature=temperature)
    return jnp.where(grouped, losses, 0), grouped.astype(losses.dtype)


@requires(min_responses=2)
def reward_partitioning_loss(
    log_ratios: PerResponse,
    reference_log_probs: PerResponse,
    lengths: PerResponse,
    rewards: PerResponse,
    mask: Mask,
    *,
    temperature: float,
) -> tuple[PerResponse, PerResponse]:
    """Reward Partitioning Optimization, arXiv 2506.13702, as its public code has it: ``1/2 (lbar - (r - Vhat)/tau)^2``. A heuristic.

    ``lbar = l / length`` is the log-ratio per token and ``Vhat(x) = tau log sum_i exp(log pi_ref(y_i|x) / length_i) exp(r_i/tau)``
    runs over the logged responses to the prompt. Vhat does not estimate V*: the geometric mean of token probabilities is no probability,
    the sum is no average, and the responses come from the behaviour policy. The code sums over the whole data set's responses to a prompt;
    here over those in the example, so join them (`data.derived.group_by_prompt`). With one response the reward cancels: K = 1 is refused.

    Args:
      log_ratios: ``l``, summed over tokens.
      reference_log_probs: log pi_ref(y|x), summed over tokens.
      lengths: tokens of each response.
      rewards: ``r``, standardised.
      mask: which responses exist; those to a prompt with a single one get weight 0.
      temperature: ``tau > 0``, reward units per nat and token.

    Returns:
      Losses and weights.

    Raises:
      UserError: if temperature is not positive, or there is a single response per prompt.
    """
    require_positive("reward_partitioning", temperature=temperature)
    require_responses("reward_partitioning", log_ratios.shape[-1], 2)
    log_ratios, reference, lengths, rewards = as_float32(
        log_ratios, reference_log_probs, lengths, rewards
    )
    lengths = jnp.maximum(lengths, 1)
    grouped = responses_in_groups(mask, 2)
    scores = jax.lax.stop_gradient(reference / lengths) + rewards / temperature
    # A prompt with a single response has no sum; its own scores replace it, and its losses get weight 0.
    summed = grouped | ~jnp.any(grouped, axis=-1, keepdims=True)
    log_sums = jax.nn.logsumexp(scores, axis=-1, keepdims=True, where=summed)
    residuals = log_ratios / lengths - (rewards / temperature - log_sums)
    return jnp.where(grouped, 0.5 * jnp.square(residuals), 0), grouped.astype(residuals.dtype)


def astar_po_loss(
    log_ratios: PerResponse,
    rewards: PerResponse,
    reference_rewards: ReferenceRewards,
    *,
    beta1: float,
    beta2: float,
) -> PerResponse:
    """A*-PO, arXiv 2505.20686: ``(beta2 l + Vhat*(x) - r)^2`` with V* estimated from samples of the reference policy.

    ``Vhat* = beta1 (logsumexp_j(r_j / beta1) - log N)``, and the plain mean at beta1 = 0. With beta1 = beta2 and many samples this is DRO
    with an oracle for V, and its optimum is pi_ref exp(r/beta2), normalised. The published method draws its responses on-policy; here they
    are the logged ones.

    Args:
      log_ratios: ``l``, summed over tokens.
      rewards: ``r``, standardised.
      reference_rewards: rewards of N samples of the reference policy for the prompt, standardised like ``rewards``.
      beta1: temperature of V*, not negative, reward units.
      beta2: temperature of the regression, positive, reward units per nat.

    Raises:
      UserError: if beta1 is negative or beta2 not positive.
    """
    require_nonnegative("astar_po", beta1=beta1)
    require_positive("astar_po", beta2=beta2)
    log_ratios, rewards = as_float32(log_ratios, rewards)
    values = jax.lax.stop_gradient(soft_value(reference_rewards, temperature=beta1))
    return jnp.square(beta2 * log_ratios + values[:, None] - rewards)


def soft_value(
    reference_rewards: ReferenceRewards, *, temperature: float
) -> Float[Array, " examples"]:
    """``tau log mean_j exp(r_j / tau)`` over samples of the reference policy, the mean reward at tau = 0 (arXiv 2505.20686).

    Args:
      reference_rewards: rewards of the samples.
      temperature: ``tau``, reward units; 0 asks for the plain mean, as the paper's code does, although the limit would be the maximum.
    """
    (rewards,) = as_float32(reference_rewards)
    if temperature == 0:
        return jnp.mean(rewards, axis=-1)
    return temperature * _log_mean_exp(rewards / temperature)


def qrpo_loss(
    log_ratios: PerResponse,
    rewards: PerResponse,
    reference_rewards: ReferenceRewards,
    *,
    beta: float,
    transform: str = "identity",
    log_partition: str = "exact",
) -> PerResponse:
    """QRPO, arXiv 2507.08068: ``(R - beta log Z - beta l)^2``, R the quantile of the reward among the reference policy's.

    The quantile of a sample of pi_ref is uniform where no two rewards tie and n is large, so Z is known: the optimum is
    pi_ref exp(R/beta) / Z for any behaviour policy with full support. (For n samples it is uniform on multiples of 1/n.) With
    beta = 0.003 only the top quantile is pushed up.

    Args:
      log_ratios: ``l``, summed over tokens.
      rewards: ``r``, in the units of ``reference_rewards``.
      reference_rewards: rewards of n samples of the reference policy for the prompt, the response itself excluded.
      beta: temperature, positive, per nat.
      transform: of the quantile, as in `quantile_rewards`.
      log_partition: as in `quantile_log_partition`; 'samples' estimates it, which tied rewards need. Without ties that is too large for
        few samples, since each counts in its own quantile: by 0.26 nats for 3 samples at beta 0.3.

    Raises:
      UserError: if beta is not positive, transform or log_partition is unknown, or they do not go together.
    """
    require_positive("qrpo", beta=beta)
    require_one_of("qrpo", "log_partition", log_partition, LOG_PARTITIONS)
    (log_ratios,) = as_float32(log_ratios)
    quantiles = quantile_rewards(rewards, reference_rewards, transform=transform)
    offsets: Array | float
    if log_partition == "samples":
        of_samples = quantile_rewards(reference_rewards, reference_rewards, transform=transform)
        offsets = beta * _log_mean_exp(of_samples / beta)[:, None]
    else:
        offsets = beta * quantile_log_partition(
            beta, transform=transform, approximate=log_partition == "approximate"
        )
    return jnp.square(jax.lax.stop_gradient(quantiles - offsets) - beta * log_ratios)


def quantile_rewards(
    rewards: Float[Array, "examples queries"],
    reference_rewards: ReferenceRewards,
    *,
    transform: str = "identity",
) -> Float[Array, "examples queries"]:
    """``R = transform((1/n) sum_j 1[r_j <= r])``, the share of the reference policy's samples that a response is at least as good as.

    Args:
      rewards: ``r``.
      reference_rewards: ``r_j``, n per prompt.
      transform: 'identity'; 'log' of the quantile, at least 1/n; 'normal' quantile function of it, clipped to [1/n, 1 - 1/n] (the clips
        are those of the public code).

    Raises:
      UserError: if the transform is unknown, or 'normal' with a single sample.
    """
    require_one_of("qrpo", "transform", transform, QUANTILE_TRANSFORMS)
    rewards, reference_rewards = as_float32(rewards, reference_rewards)
    samples = reference_rewards.shape[-1]
    at_least = reference_rewards[:, None, :] <= rewards[:, :, None]
    quantiles = jnp.mean(at_least.astype(rewards.dtype), axis=-1)
    if transform == "log":
        return jnp.log(jnp.maximum(quantiles, 1 / samples))
    if transform == "normal":
        if samples < 2:
            raise UserError("qrpo: transform 'normal' needs at least 2 reference rewards a prompt")
        return jax.scipy.special.ndtri(jnp.clip(quantiles, 1 / samples, 1 - 1 / samples))
    return quantiles


def quantile_log_partition(beta: float, *, transform: str, approximate: bool = False) -> float:
    """``log Z = log E exp(R / beta)`` for a uniform quantile (arXiv 2507.08068).

    ``Z = beta (e^{1/beta} - 1)`` for 'identity', ``beta / (1 + beta)`` for 'log', and ``log Z = 1 / (2 beta^2)`` for 'normal'.

    Args:
      beta: temperature.
      transform: of the quantile.
      approximate: the public code's ``log beta + 1/beta`` for 'identity', right for small beta and 58 % too large in Z at beta = 1.

    Raises:
      UserError: if an approximation is asked of a transform that has none.
    """
    if approximate and transform != "identity":
        raise HyperparameterError(
            f"qrpo: log_partition 'approximate' is for transform 'identity', not {transform!r}"
        )
    if transform == "log":
        return math.log(beta / (1 + beta))
    if transform == "normal":
        return 1 / (2 * beta**2)
    exact = 0.0 if approximate else math.log1p(-math.exp(-1 / beta))
    return math.log(beta) + 1 / beta + exact


def _log_mean_exp(values: Float[Array, "examples samples"]) -> Float[Array, " examples"]:
    return jax.nn.logsumexp(values, axis=-1) - math.log(values.shape[-1])
