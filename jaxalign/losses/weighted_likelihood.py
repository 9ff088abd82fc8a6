"""Likelihood of the logged responses, weighted by their reward; these losses need no reference policy.

Filtered fine-tuning, reward-weighted regression and weighted behaviour cloning tilt the behaviour policy mu that wrote the responses, not
the reference policy. They are the controls for claims about regularised methods. Best-of-n fine-tuning filters too, when the data are
derived (`data.derived.best_of_n`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.losses.hyperparameters import require_one_of, require_positive
from jaxalign.losses.masking import as_float32
from jaxalign.losses.prompt_groups import prompt_means
from jaxalign.losses.requirements import requires

PerResponse = Float[Array, "examples responses"]


@requires(threshold=("threshold", "rewards"))
def filtered_sft_loss(
    log_probs: PerResponse,
    rewards: PerResponse,
    lengths: PerResponse,
    mask: Bool[Array, "examples responses"],
    *,
    threshold: float = 0.0,
    baseline: str = "none",
    normalize: str = "tokens",
) -> tuple[PerResponse, PerResponse]:
    """Supervised fine-tuning on the responses whose reward exceeds a threshold: ``-log pi(y|x)`` where ``r > threshold``, else 0.

    Optimum: mu restricted to the kept responses and renormalised.

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
      rewards: ``r``, standardised by the training split.
      lengths: tokens of each response.
      mask: which responses exist.
      threshold: in units of standardised reward; a reward equal to it is not kept.
      baseline: 'none', or 'prompt_mean' to compare with the mean reward of the responses to the same prompt, so that easy prompts do not
        crowd out the hard ones.
      normalize: what the sum of the losses is divided by: 'tokens' of the kept responses, which is the mean cross entropy of fine-tuning
        on the filtered set, or 'responses' that were kept.

    Returns:
      Losses and weights.

    Raises:
      UserError: if baseline or normalize is unknown.
    """
    require_one_of("filtered_sft", "baseline", baseline, ("none", "prompt_mean"))
    require_one_of("filtered_sft", "normalize", normalize, ("tokens", "responses"))
    log_probs, rewards, lengths = as_float32(log_probs, rewards, lengths)
    if baseline == "prompt_mean":
        rewards = rewards - prompt_means(rewards, mask)
    kept = mask & (rewards > threshold)
    sizes = lengths if normalize == "tokens" else jnp.ones_like(lengths)
    return jnp.where(kept, -log_probs, 0), jnp.where(kept, sizes, 0)


def reward_weighted_regression_loss(
    log_probs: PerResponse,
    rewards: PerResponse,
    *,
    temperature: float,
    max_weight: float = 20.0,
    normalize: str = "batch",
) -> tuple[PerResponse, PerResponse]:
    """Reward-weighted regression, Peters and Schaal 2007; with a clipped weight, Peng et al. 2019, arXiv 1910.00177.

    ``-w log pi(y|x)`` with ``w = min(exp(r / tau), max_weight)``, a constant. Without clipping the optimum is mu exp(r/tau), normalised:
    it tilts the behaviour policy mu, not the reference policy. The exponent is clipped before the exponential, so no reward overflows.

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
      rewards: ``r``, standardised by the training split.
      temperature: ``tau > 0``, units of standardised reward.
      max_weight: the largest weight.
      normalize: 'batch' divides by the sum of the weights in the step's batch, which is dividing every weight by the batch mean; 'none' by
        the number of responses.

    Returns:
      Losses and weights; the weights carry the normalisation, so microbatches add up to the whole batch.

    Raises:
      UserError: if temperature or max_weight is not positive and finite, or normalize is unknown.
    """
    method = "reward_weighted_regression"
    require_positive(method, temperature=temperature, max_weight=max_weight)
    require_one_of(method, "normalize", normalize, ("batch", "none"))
    log_probs, rewards = as_float32(log_probs, rewards)
    exponents = jnp.minimum(rewards / temperature, math.log(max_weight))
    weights = jax.lax.stop_gradient(jnp.exp(exponents))
    divisors = weights if normalize == "batch" else jnp.ones_like(weights)
    return -weights * log_probs, divisors


@requires(nonnegative=("feedback",))
def weighted_behaviour_cloning_loss(log_probs: PerResponse, feedback: PerResponse) -> PerResponse:
    """Weighted behaviour cloning: ``-r log pi(y|x)`` with ``r >= 0`` (a baseline of A-LoL, Baheti et al. 2023, arXiv 2305.14718).

    Optimum: mu r, normalised. It needs the raw feedback, because standardised rewards are negative for half of the responses, and a
    negative weight pushes a response's probability to 0 without bound; objectives refuse data with negative feedback.

    Args:
      log_probs: log pi(y|x), summed over tokens, in nats.
      feedback: ``r >= 0`` in its raw unit; a constant.
    """
    log_probs, feedback = as_float32(log_probs, feedback)
    return -jax.lax.stop_gradient(feedback) * log_probs
