"""SPA: preference pairs that a policy labels itself, and the detection of wrong labels (Kim et al. 2024, arXiv 2406.04412).

Only `extrapolated_token_log_probs` needs logits over the vocabulary, of the policy and of the reference policy at the same positions;
everything else works on log-probabilities of responses. `objectives.spa` runs it over chunks of positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.losses.hyperparameters import (
    require_nonnegative,
    require_one_of,
    require_positive,
    require_probability,
)
from jaxalign.losses.masking import as_float32
from jaxalign.losses.pairwise import difference, soft_logistic

PerPair = Float[Array, " pairs"]
Samples = Float[Array, "prompts samples"]


def spa_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    suspects: Bool[Array, " pairs"],
    *,
    beta: float,
    alpha: float,
) -> PerPair:
    """SPA's refined loss: DPO whose label is smoothed by ``alpha`` for suspects only (arXiv 2406.04412, equations 9-11).

    ``-(1 - alpha z) log sigmoid(beta h) - alpha z log sigmoid(-beta h)`` with z = 1 for suspects; labels are never swapped.

    Args:
      chosen_log_ratios: ``l_w``, log pi - log pi_ref of the preferred responses, summed over tokens, in nats.
      rejected_log_ratios: ``l_l`` of the others; ``h = l_w - l_l``.
      suspects: ``z``, the pairs whose label looks wrong.
      beta: inverse temperature, per nat.
      alpha: how far a suspect's label is smoothed, in [0, 1]; a suspect's best margin is ``beta h = logit(1 - alpha)``.
    """
    require_positive("spa", beta=beta)
    require_probability("spa", alpha=alpha)
    margins = beta * difference(chosen_log_ratios, rejected_log_ratios)
    return soft_logistic(margins, jnp.where(suspects, alpha, 0.0).astype(margins.dtype))


def extrapolated_token_log_probs(
    policy_logits: Float[Array, "*tokens vocab"],
    reference_logits: Float[Array, "*tokens vocab"],
    targets: Int[Array, "*tokens"],
    *,
    strength: float,
) -> Float[Array, "*tokens"]:
    """Log-probabilities of the targets under logits ``(1 + lambda) f - lambda f_ref``, without gradient (arXiv 2406.04412, equation 12).

    They imitate a policy trained with a weaker pull to the reference, beta / (1 + lambda).

    Args:
      policy_logits: ``f``.
      reference_logits: ``f_ref`` at the same positions.
      targets: token ids.
      strength: ``lambda >= 0``; 0 gives the policy's own log-probabilities.
    """
    require_nonnegative("spa", strength=strength)
    policy_logits, reference_logits = as_float32(policy_logits, reference_logits)
    logits = jax.lax.stop_gradient(policy_logits + strength * (policy_logits - reference_logits))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def find_suspects(
    chosen_extrapolated_log_ratios: PerPair,
    rejected_extrapolated_log_ratios: PerPair,
    threshold: Float[Array, ""] | float,
    *,
    beta: float,
) -> Bool[Array, " pairs"]:
    """De-coupled noise detection: ``beta h_g <= threshold``, with h_g the margin under extrapolated logits (equation 12).

    Args:
      chosen_extrapolated_log_ratios: extrapolated log-probability minus the reference's, of the preferred responses.
      rejected_extrapolated_log_ratios: of the others.
      threshold: from `RunningQuantile.value`.
      beta: inverse temperature, per nat.
    """
    margins = beta * difference(chosen_extrapolated_log_ratios, rejected_extrapolated_log_ratios)
    return margins <= threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningQuantile:
    """A low quantile of the last ``window`` values, as a state of float32 arrays.

    The rule of SPA's public code: sort the full window and average the values at the zero-based ranks ``int(window * fraction)`` and
    the next. Unlike in that code, values enter one by one, not as means of a microbatch (whose tenth percentile would flag far more than a
    tenth of the pairs), and the state is that of the whole batch on all devices.

    Attributes:
      window: number of values remembered.
      fraction: the quantile, in [0, 1).
      until_full: 'none' for a threshold of -inf before the window is full, so that nothing is below it; 'zero' as in the public code.
    """

    window: int = 50
    fraction: float = 0.1
    until_full: str = "none"

    def __post_init__(self) -> None:
        require_positive("RunningQuantile", window=self.window)
        require_probability("RunningQuantile", fraction=self.fraction)
        require_one_of("RunningQuantile", "until_full", self.until_full, ("none", "zero"))

    def initial(self) -> dict[str, Array]:
        """An empty window: ``recent`` ``[window]``, the oldest first and empty places before it, and ``filled``, how many are not empty."""
        return {
            "recent": jnp.zeros((self.window,), jnp.float32),
            "filled": jnp.zeros((), jnp.float32),
        }

    def add(
        self,
        state: Mapping[str, Array],
        values: Float[Array, " values"],
        where: Bool[Array, " values"],
    ) -> dict[str, Array]:
        """The state after the values for which ``where`` holds, the last of them being the newest."""
        places = jnp.arange(self.window)
        known = jnp.concatenate([places >= self.window - state["filled"], where])
        joined = jnp.concatenate([state["recent"], values.astype(jnp.float32)])
        # The sort is stable: known values move to the end and keep their order.
        recent = joined[jnp.argsort(known, stable=True)][-self.window :]
        filled = jnp.minimum(jnp.sum(known), self.window).astype(jnp.float32)
        return {"recent": jnp.where(places >= self.window - filled, recent, 0), "filled": filled}

    def value(self, state: Mapping[str, Array]) -> Float[Array, ""]:
        """The quantile; before the window is full, the value that ``until_full`` chooses."""
        ranks = jnp.sort(state["recent"])
        rank = min(int(self.window * self.fraction), self.window - 1)
        quantile = 0.5 * (ranks[rank] + ranks[min(rank + 1, self.window - 1)])
        empty = 0.0 if self.until_full == "zero" else -jnp.inf
        return jnp.where(state["filled"] >= self.window, quantile, empty)
