"""Direct Reward Optimisation (DRO), Richemond et al. 2024, arXiv 2405.19107.

DRO fits a policy pi and a value V to triplets (prompt x, response y, reward r) by regressing the scaled log-ratio on the advantage:

    L(pi, V) = 1/2 E [ (r - V(x) - tau * l)^2 ],    l = log pi(y|x) - log pi_ref(y|x).

Its unique minimum over full-support data is pi* = pi_ref exp((r - V*)/tau), V*(x) = tau log E_{y~pi_ref} exp(r/tau). All log
probabilities are sums over tokens in nats; rewards, values and temperature share one unit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.masking import as_float32

PerResponse = Float[Array, "examples responses"]


def policy_loss(
    log_probs: PerResponse,
    log_ratios: PerResponse,
    rewards: PerResponse,
    values: PerResponse,
    *,
    temperature: float,
    regularizer: float | None = None,
) -> PerResponse:
    """The policy's half of DRO-V, scaled by 1/tau: ``-(r - sg(V)) log pi + (tau/2) l^2``.

    Its gradient is ``1/tau`` times equation 7 of arXiv 2405.19107: ``-delta * grad log pi`` with the residual ``delta = r - V - tau l``.

    Args:
      log_probs: log pi(y|x), summed over tokens.
      log_ratios: ``l``, in nats; only log pi in it may carry a gradient.
      rewards: ``r``, in units of reward.
      values: ``V(x)`` of the response's prompt, in units of reward; treated as a constant.
      temperature: ``tau > 0``, reward units per nat.
      regularizer: coefficient of ``l^2``; ``tau/2`` by default. The paper's printed algorithm reads as ``1/2``, which has another
        fixed point unless tau = 1; it is available as the objective's ``literal`` switch.
    """
    log_probs, log_ratios, rewards, values = as_float32(log_probs, log_ratios, rewards, values)
    coefficient = temperature / 2 if regularizer is None else regularizer
    advantages = jax.lax.stop_gradient(rewards - values)
    return -advantages * log_probs + coefficient * jnp.square(log_ratios)


def value_loss(
    values: PerResponse, log_ratios: PerResponse, rewards: PerResponse, *, temperature: float
) -> PerResponse:
    """The value's half of DRO-V: ``1/2 (V - sg(r - tau l))^2`` (gradient: arXiv 2405.19107, equation 8). Shapes as in `policy_loss`."""
    target = jax.lax.stop_gradient(value_target(log_ratios, rewards, temperature=temperature))
    (values,) = as_float32(values)
    return 0.5 * jnp.square(values - target)


def value_target(
    log_ratios: PerResponse, rewards: PerResponse, *, temperature: float
) -> PerResponse:
    """``z = r - tau * l``, whose mean over the behaviour policy is the best V for a fixed policy (arXiv 2405.19107, section 3.3)."""
    log_ratios, rewards = as_float32(log_ratios, rewards)
    return rewards - temperature * log_ratios


def variance_loss(targets: PerResponse, mean_target: Float[Array, ""] | float) -> PerResponse:
    """DRO-P: ``1/2 (z - sg(zbar))^2`` whose batch mean is ``1/2 Var(z)`` (arXiv 2405.19107, section 4.2).

    The gradient through ``zbar`` vanishes because deviations from a mean sum to zero, so ``zbar`` may come from a larger batch than
    ``targets``: this is what makes microbatches exact.

    Args:
      targets: ``z = r - tau * l``.
      mean_target: ``zbar``, the mean of z over the whole step's batch.
    """
    return 0.5 * jnp.square(targets - jax.lax.stop_gradient(mean_target))


def literal_variance_policy_loss(
    log_probs: PerResponse,
    log_ratios: PerResponse,
    rewards: PerResponse,
    mean_log_ratio: Float[Array, ""] | float,
    *,
    temperature: float,
) -> PerResponse:
    """DRO-P as its pseudo-code is printed: ``-r log pi + tau (l - sg(lbar))^2``, uncentred rewards and tau instead of tau/2.

    For comparison only; its fixed point is not the KL-regularised optimum. Shapes as in `policy_loss`.
    """
    log_probs, log_ratios, rewards = as_float32(log_probs, log_ratios, rewards)
    centred = log_ratios - jax.lax.stop_gradient(mean_log_ratio)
    return -jax.lax.stop_gradient(rewards) * log_probs + temperature * jnp.square(centred)


def batch_value_loss(
    values: PerResponse,
    targets: PerResponse,
    mean_value: Float[Array, ""] | float,
    mean_target: Float[Array, ""] | float,
) -> PerResponse:
    """Value loss when one number, the batch mean of V, serves the whole batch (the paper's "single value" ablation).

    The mean over the batch equals ``1/2 mean (Vbar - z)^2`` and its gradient ``(Vbar - zbar) mean grad V``, also when ``mean_value``
    and ``mean_target`` come from a larger batch than ``values``.

    Args:
      values: ``V(x)`` per response, carrying the gradient.
      targets: ``z = r - tau * l``.
      mean_value: ``Vbar`` over the whole step's batch.
      mean_target: ``zbar`` over the whole step's batch.
    """
    stop = jax.lax.stop_gradient
    values, targets = as_float32(values, targets)
    mean_value, mean_target, targets = stop(mean_value), stop(mean_target), stop(targets)
    shared = mean_value + values - stop(values)
    return 0.5 * (jnp.square(shared - mean_target) + jnp.square(targets - mean_target))


def two_sample_loss(
    log_ratios: Float[Array, "examples 2"],
    rewards: Float[Array, "examples 2"],
    *,
    temperature: float,
) -> Float[Array, " examples"]:
    """``1/4 ((r1 - r2) - tau (l1 - l2))^2``: half the variance within a prompt, from two responses (arXiv 2405.19107, appendix).

    The appendix prints 1/2, and responses of pi; we take both for errors, because only 1/4 gives DRO's loss with V profiled out.

    Args:
      log_ratios: ``l`` of both responses.
      rewards: ``r`` of both responses.
      temperature: ``tau``.
    """
    targets = value_target(log_ratios, rewards, temperature=temperature)
    return 0.25 * jnp.square(targets[:, 0] - targets[:, 1])


def optimal_policy_log_probs(
    reference_log_probs: Float[Array, "prompts responses"],
    rewards: Float[Array, "prompts responses"],
    *,
    temperature: float,
) -> tuple[Float[Array, "prompts responses"], Float[Array, " prompts"]]:
    """The closed form ``pi* = pi_ref exp((r - V*)/tau)`` and ``V*`` where the responses of a prompt can be enumerated.

    Returns:
      ``log pi*`` ``[prompts, responses]`` and ``V*`` ``[prompts]``.
    """
    logits = reference_log_probs + rewards / temperature
    values = temperature * jax.nn.logsumexp(logits, axis=-1)
    return logits - values[:, None] / temperature, values
