"""Losses on pairs of responses to one prompt, the preferred one first.

``l_w`` and ``l_l`` are the log-ratios log pi(y|x) - log pi_ref(y|x) of the preferred and of the other response, summed over tokens with
EOS, in nats; ``h = l_w - l_l`` is their margin, and ``beta`` an inverse temperature per nat. All arrays are ``[pairs]``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.losses import dro
from jaxalign.losses.hyperparameters import (
    require_flip_rate,
    require_nonnegative,
    require_positive,
)
from jaxalign.losses.masking import as_float32
from jaxalign.losses.requirements import requires

PerPair = Float[Array, " pairs"]


def dpo_loss(
    chosen_log_ratios: Float[Array, " pairs"],
    rejected_log_ratios: Float[Array, " pairs"],
    *,
    beta: float,
) -> Float[Array, " pairs"]:
    """DPO, Rafailov et al. 2023, arXiv 2305.18290, equation 7: ``-log sigmoid(beta (l_w - l_l))``.

    Args:
      chosen_log_ratios: ``l_w``, log pi - log pi_ref of the preferred responses, summed over tokens, in nats.
      rejected_log_ratios: ``l_l`` of the others.
      beta: inverse temperature, per nat.
    """
    require_positive("dpo", beta=beta)
    chosen_log_ratios, rejected_log_ratios = as_float32(chosen_log_ratios, rejected_log_ratios)
    return -jax.nn.log_sigmoid(beta * (chosen_log_ratios - rejected_log_ratios))


def length_normalized_dpo_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_lengths: PerPair,
    rejected_lengths: PerPair,
    *,
    beta: float,
) -> PerPair:
    """DPO on log-ratios per token: ``-log sigmoid(beta (l_w / n_w - l_l / n_l))`` (Lambert et al. 2024, arXiv 2411.15124, section 5.1).

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      chosen_lengths: ``n_w``, tokens with EOS.
      rejected_lengths: ``n_l``.
      beta: inverse temperature, per nat and token; of the order of the sum's beta times a response's length.
    """
    require_positive("length_normalized_dpo", beta=beta)
    margins = per_token(chosen_log_ratios, chosen_lengths) - per_token(
        rejected_log_ratios, rejected_lengths
    )
    return jax.nn.softplus(-beta * margins)


def cdpo_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    *,
    beta: float,
    label_smoothing: float,
) -> PerPair:
    """Conservative DPO: ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)`` (Mitchell 2023, "A note on DPO with noisy preferences").

    The best margin of a pair is finite: ``beta h = log((1 - e) / e)``.

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      beta: inverse temperature, per nat.
      label_smoothing: ``e``, the assumed probability of a flipped label, in [0, 1/2).
    """
    require_positive("cdpo", beta=beta)
    require_flip_rate("cdpo", label_smoothing=label_smoothing)
    return soft_logistic(beta * difference(chosen_log_ratios, rejected_log_ratios), label_smoothing)


def robust_dpo_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    *,
    beta: float,
    flip_rate: float,
) -> PerPair:
    """Robust DPO: ``(-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e)`` (Chowdhury et al. 2024, arXiv 2403.00409).

    Unbiased: its mean over labels that are flipped with probability ``e`` is the DPO loss of the true labels. It falls without bound
    as h grows.

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      beta: inverse temperature, per nat.
      flip_rate: ``e``, the rate of flipped labels, in [0, 1/2).
    """
    require_positive("robust_dpo", beta=beta)
    require_flip_rate("robust_dpo", flip_rate=flip_rate)
    margins = beta * difference(chosen_log_ratios, rejected_log_ratios)
    return soft_logistic(margins, -flip_rate / (1 - 2 * flip_rate))


def ipo_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_lengths: PerPair,
    rejected_lengths: PerPair,
    *,
    tau: float,
    length_average: bool = True,
) -> PerPair:
    """IPO, Azar et al. 2023, arXiv 2310.12036, equation 17: ``(h - 1 / (2 tau))^2``.

    It is the two-sample DRO loss with a reward difference of one, at temperature ``2 tau`` (up to the factor ``tau^2``).

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      chosen_lengths: tokens of the preferred responses, with EOS; read only with ``length_average``.
      rejected_lengths: tokens of the others.
      tau: strength of the regularisation, per nat (per nat and token with ``length_average``).
      length_average: divide each log-ratio by its number of tokens, as the public implementations do; the theory has sums.
    """
    require_positive("ipo", tau=tau)
    if length_average:
        chosen_log_ratios = per_token(chosen_log_ratios, chosen_lengths)
        rejected_log_ratios = per_token(rejected_log_ratios, rejected_lengths)
    return jnp.square(difference(chosen_log_ratios, rejected_log_ratios) - 1 / (2 * tau))


def slic_loss(
    chosen_log_probs: PerPair,
    rejected_log_probs: PerPair,
    *,
    margin: float = 1.0,
    regularization: float = 0.1,
) -> PerPair:
    """SLiC-HF: ``max(0, d - log pi(y_w) + log pi(y_l)) - lambda log pi(y_w)``, Zhao et al. 2023, arXiv 2305.10425. No reference policy.

    The paper's second term is the likelihood of a separate target; the public reference code takes the preferred response, as here.

    Args:
      chosen_log_probs: log pi(y_w|x), summed over tokens, in nats.
      rejected_log_probs: log pi(y_l|x).
      margin: ``d``, in nats.
      regularization: ``lambda``.
    """
    require_nonnegative("slic", margin=margin, regularization=regularization)
    (chosen_log_probs,) = as_float32(chosen_log_probs)
    hinge = jax.nn.relu(margin - difference(chosen_log_probs, rejected_log_probs))
    return hinge - regularization * chosen_log_probs


def hinge_loss(chosen_log_ratios: PerPair, rejected_log_ratios: PerPair, *, beta: float) -> PerPair:
    """``max(0, 1 - beta h)``: SLiC's hinge on log-ratios (Liu et al. 2023, arXiv 2309.06657).

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      beta: inverse of the margin that is wanted, per nat.
    """
    require_positive("hinge", beta=beta)
    return jax.nn.relu(1 - beta * difference(chosen_log_ratios, rejected_log_ratios))


@requires(margins=True)
def rebel_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_rewards: PerPair,
    rejected_rewards: PerPair,
    *,
    eta: float,
) -> PerPair:
    """REBEL with a fixed reference policy: ``(h - eta (r_w - r_l))^2`` (Gao et al. 2024, arXiv 2404.16767, ``eta^2`` times equation 3).

    Args:
      chosen_log_ratios: ``l_w``; which of the two responses comes first does not matter.
      rejected_log_ratios: ``l_l``.
      chosen_rewards: ``r_w``, in units of reward.
      rejected_rewards: ``r_l``.
      eta: nats per unit of reward; `two_sample_dro_loss` at ``temperature = 1 / eta`` is ``1 / (4 eta^2)`` of this.
    """
    require_positive("rebel", eta=eta)
    (rewards,) = as_float32(difference(chosen_rewards, rejected_rewards))
    return jnp.square(difference(chosen_log_ratios, rejected_log_ratios) - eta * rewards)


@requires(margins=True)
def two_sample_dro_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_rewards: PerPair,
    rejected_rewards: PerPair,
    *,
    temperature: float,
) -> PerPair:
    """`dro.two_sample_loss` on pairs: ``1/4 (r_w - r_l - tau h)^2`` (arXiv 2405.19107, appendix). Arguments as in `rebel_loss`."""
    require_positive("two_sample_dro", temperature=temperature)
    log_ratios = jnp.stack(as_float32(chosen_log_ratios, rejected_log_ratios), axis=1)
    rewards = jnp.stack(as_float32(chosen_rewards, rejected_rewards), axis=1)
    return dro.two_sample_loss(log_ratios, rewards, temperature=temperature)


def selm_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    third_log_ratios: PerPair,
    third_mask: Bool[Array, " pairs"],
    *,
    beta: float,
    alpha: float,
    clip: float | None = None,
) -> PerPair:
    """SELM: DPO plus an optimistic term that pushes the reference's own answer down, ``-log sigmoid(beta h) + alpha beta l_y``.

    Zhang et al. 2024, arXiv 2405.19332, equation 4.2 (algorithm 1 there prints ``alpha`` without ``beta``; the public code has both).
    With y sampled from the reference the term's mean is ``-alpha beta KL(pi_ref || pi)``: it rewards leaving the reference.

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      third_log_ratios: ``l_y`` of a response y that the reference policy generated.
      third_mask: which pairs have such a response; the others get DPO alone.
      beta: inverse temperature, per nat.
      alpha: strength of the optimism; 0 is DPO.
      clip: in nats: no more push once ``l_y < -clip``; the term has no lower bound without it. None: no clipping, as published.
    """
    require_positive("selm", beta=beta)
    require_nonnegative("selm", alpha=alpha)
    (third_log_ratios,) = as_float32(third_log_ratios)
    bonus = jnp.where(third_mask, third_log_ratios, 0)
    if clip is not None:
        require_positive("selm", clip=clip)
        bonus = jnp.maximum(bonus, -clip)
    losses = jax.nn.softplus(-beta * difference(chosen_log_ratios, rejected_log_ratios))
    return losses + alpha * beta * bonus


def per_token(log_ratios: PerPair, lengths: PerPair) -> PerPair:
    """``l / n``; a response that does not exist counts as one token long."""
    log_ratios, lengths = as_float32(log_ratios, lengths)
    return log_ratios / jnp.maximum(lengths, 1)


def difference(
    first: Float[Array, "*shape"], second: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """``first - second`` in float32."""
    first, second = as_float32(first, second)
    return first - second


def soft_logistic(margins: PerPair, flipped: PerPair | float) -> PerPair:
    """``-(1 - q) log sigmoid(z) - q log sigmoid(-z)``, which is ``softplus(-z) + q z``: finite for every z and linear in q."""
    return jax.nn.softplus(-margins) + flipped * margins
