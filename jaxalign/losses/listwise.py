"""Losses on K responses to one prompt with rewards: noise-contrastive alignment (Chen et al. 2024, arXiv 2402.05369).

The rewards give a target distribution over the responses of a prompt, ``q = softmax(r / alpha)``; the logits are ``beta l`` with the
log-ratios ``l = log pi(y|x) - log pi_ref(y|x)``, summed over tokens, in nats.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError
from jaxalign.losses.hyperparameters import require_positive
from jaxalign.losses.masking import as_float32
from jaxalign.losses.requirements import requires

PerPair = Float[Array, " pairs"]
PerExample = Float[Array, " examples"]
PerResponse = Float[Array, "examples responses"]
Mask = Bool[Array, "examples responses"]

# Stands for -inf in masked softmaxes; unlike that, it gives no NaN where everything is masked.
_NOTHING = -1e30


@requires(min_responses=2)
def infonca_loss(
    log_ratios: PerResponse,
    rewards: PerResponse,
    mask: Mask,
    *,
    alpha: float,
    beta: float,
) -> tuple[PerExample, PerExample]:
    """InfoNCA: ``-sum_i q_i log softmax(beta l)_i`` (arXiv 2402.05369, section 3).

    Only differences between responses count. The optimum over all responses is ``pi_ref exp(r / (alpha beta))``, normalised. With two
    responses and alpha -> 0 it is DPO.

    Args:
      log_ratios: ``l``.
      rewards: ``r``, standardised by the training split; held constant.
      mask: which responses exist.
      alpha: temperature of the target, in units of standardised reward.
      beta: inverse temperature of the implicit reward, per nat.

    Returns:
      Losses, and weights that are 1 for prompts with at least two responses.

    Raises:
      UserError: if the array has room for one response only, or alpha or beta is not positive.
    """
    log_ratios, targets = _checked("infonca", log_ratios, rewards, mask, alpha, beta)
    log_softmax = masked_log_softmax(beta * log_ratios, mask)
    return _of_lists(-jnp.sum(targets * log_softmax, axis=1), mask)


@requires(min_responses=2)
def nca_loss(
    log_ratios: PerResponse,
    rewards: PerResponse,
    mask: Mask,
    *,
    alpha: float,
    beta: float,
) -> tuple[PerExample, PerExample]:
    """NCA: ``-sum_i [q_i log sigmoid(beta l_i) + (1/K) log sigmoid(-beta l_i)]`` over the K responses (arXiv 2402.05369, section 4).

    It fixes the level of each log-ratio, ``beta l_i = log(K q_i)``, not only differences, so a good response's likelihood need not
    fall. It assumes that the responses come from the reference policy, and only for beta = 1 are these levels those of a normalised
    policy. Arguments, results and errors as in `infonca_loss`. The public code adds 0.01 to the best response's target, which is left
    out here.
    """
    log_ratios, targets = _checked("nca", log_ratios, rewards, mask, alpha, beta)
    logits = beta * log_ratios
    share = 1 / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    losses = targets * jax.nn.softplus(-logits) + share * jax.nn.softplus(logits)
    return _of_lists(jnp.sum(jnp.where(mask, losses, 0), axis=1), mask)


def nca_pair_loss(
    chosen_log_ratios: PerPair, rejected_log_ratios: PerPair, *, beta: float
) -> PerPair:
    """NCA on pairs: ``-log sigmoid(beta l_w) - 1/2 log sigmoid(-beta l_w) - 1/2 log sigmoid(-beta l_l)`` (arXiv 2402.05369).

    `nca_loss` at K = 2 with all of the target on the preferred response.

    Args:
      chosen_log_ratios: ``l_w`` of the preferred responses.
      rejected_log_ratios: ``l_l`` of the others.
      beta: inverse temperature, per nat.
    """
    require_positive("nca_pair", beta=beta)
    chosen, rejected = as_float32(chosen_log_ratios, rejected_log_ratios)
    softplus = jax.nn.softplus
    return softplus(-beta * chosen) + 0.5 * (softplus(beta * chosen) + softplus(beta * rejected))


def reward_targets(rewards: PerResponse, mask: Mask, *, alpha: float) -> PerResponse:
    """``q = softmax(r / alpha)`` over the responses that exist, 0 for the others, without gradient."""
    (rewards,) = as_float32(rewards)
    targets = jnp.exp(masked_log_softmax(rewards / alpha, mask))
    return jax.lax.stop_gradient(jnp.where(mask, targets, 0))


def masked_log_softmax(logits: PerResponse, mask: Mask) -> PerResponse:
    """Log-softmax over the entries where the mask holds, 0 elsewhere."""
    log_normalizers = jax.nn.logsumexp(jnp.where(mask, logits, _NOTHING), axis=1, keepdims=True)
    return jnp.where(mask, logits - log_normalizers, 0)


def _checked(
    name: str, log_ratios: PerResponse, rewards: PerResponse, mask: Mask, alpha: float, beta: float
) -> tuple[PerResponse, PerResponse]:
    """Float32 log-ratios, 0 where nothing exists, and targets."""
    require_positive(name, alpha=alpha, beta=beta)
    if log_ratios.shape[1] < 2:
        raise UserError(
            f"{name} compares the responses to one prompt and needs at least 2, but there is room for {log_ratios.shape[1]}"
        )
    (log_ratios,) = as_float32(log_ratios)
    return jnp.where(mask, log_ratios, 0), reward_targets(rewards, mask, alpha=alpha)


def _of_lists(losses: PerExample, mask: Mask) -> tuple[PerExample, PerExample]:
    lists = jnp.sum(mask, axis=1) > 1
    return jnp.where(lists, losses, 0), lists.astype(losses.dtype)
