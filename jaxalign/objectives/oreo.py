"""OREO: offline reasoning optimisation, a policy and a value of every prefix (Wang et al. 2024, arXiv 2412.16145)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import require_range
from jaxalign.losses.distillation import reverse_kl
from jaxalign.losses.log_ratios import log_ratio
from jaxalign.losses.oreo import (
    consistency_residuals,
    oreo_policy_loss,
    oreo_value_loss,
)
from jaxalign.losses.segments import first_tokens
from jaxalign.networks.distributions import map_distributions
from jaxalign.networks.protocols import Network, PrefixValuePredictor, TokenPolicy
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Metric,
    Objective,
    Params,
    mask_of,
    mean_metric,
    responses_of,
)
from jaxalign.objectives.token_weighted import (
    likelihood_metrics,
    mean_over_tokens,
    num_responses,
    num_tokens,
    segments_of,
    token_log_ratio_metrics,
    token_sum,
    tokens_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OREO(Objective):
    """Token-level OREO: both networks fitted to ``V_t + beta sum_{i >= t} l_i = R``, with the policy held near the reference by its KL.

    The reward R of a response counts at each of its tokens. Losses are means over a response's tokens, then over responses. Both networks
    step together from the same values; the authors' code steps the value first. The KL at every position is exact, over the whole
    vocabulary, so the frozen reference is in memory.

    Attributes:
      policy: the policy network.
      value: the network of prefix values, trained in the role ``value``.
      beta: temperature, units of standardised reward per nat.
      kl_weight: alpha, of the mean over tokens of ``KL(pi || pi_ref)``.
    """

    policy: TokenPolicy
    value: PrefixValuePredictor
    beta: float = 0.03
    kl_weight: float = 0.01

    name: ClassVar[str] = "oreo"
    batch_fields: ClassVar[tuple[str, ...]] = ("rewards",)

    def __post_init__(self) -> None:
        require_range("OREO", "(0, inf)", beta=self.beta)
        require_range("OREO", "[0, inf)", kl_weight=self.kl_weight)

    @property
    def temperature(self) -> float:
        return self.beta

    def trained(self) -> dict[str, Network]:
        return {"policy": self.policy, "value": self.value}

    def frozen_roles(self) -> tuple[str, ...]:
        return ("reference",)

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        policy_rng, value_rng = (None, None) if rng is None else jax.random.split(rng)
        log_probs, reference, divergences = self._read(params, batch, policy_rng)
        log_ratios = log_ratio(log_probs, reference, jnp.ones_like(reference))
        values = self.value.token_values(params["value"], batch, rng=value_rng)
        rewards, segments = tokens_of(batch, "rewards"), segments_of(batch)

        value_losses = oreo_value_loss(values, log_ratios, rewards, segments, beta=self.beta)
        policy_losses = oreo_policy_loss(log_ratios, values, rewards, segments, beta=self.beta)
        losses = value_losses + policy_losses + self.kl_weight * divergences

        def per_response(quantity: Array) -> Array:
            return token_sum(mean_over_tokens(quantity, batch), batch)

        loss_sum, weight = per_response(losses), num_responses(batch)
        residuals = consistency_residuals(values, log_ratios, rewards, segments, beta=self.beta)
        return LossOutput(
            loss_sum,
            weight,
            {
                "loss": Metric(loss_sum, weight),
                "value_loss": Metric(per_response(value_losses), weight),
                "policy_loss": Metric(per_response(policy_losses), weight),
                "kl_per_token": Metric(token_sum(divergences, batch), num_tokens(batch)),
                "residual_squared": Metric(
                    token_sum(jnp.square(residuals), batch), num_tokens(batch)
                ),
                "value": mean_metric(values, first_tokens(segments)),
                "reward": mean_metric(responses_of(batch, "rewards"), mask_of(batch)),
                **token_log_ratio_metrics(log_ratios, batch),
                **likelihood_metrics(log_probs, batch),
            },
        )

    def _read(self, params: Params, batch: Batch, rng: Array | None) -> tuple[Array, Array, Array]:
        """Target log-probabilities under policy and reference, and ``KL(pi || pi_ref)``, at every position."""
        policy = self.policy
        frozen = jax.lax.stop_gradient(params["reference"])
        hidden = policy.decode(params["policy"], batch, rng=rng)
        distributions = [
            policy.distributions(params["policy"], hidden),
            policy.distributions(frozen, policy.decode(frozen, batch)),
        ]

        def read(log_probs: Array, reference: Array, targets: Array) -> tuple[Array, Array, Array]:
            def chosen(array: Array) -> Array:
                return jnp.take_along_axis(array, targets[..., None], axis=-1, mode="clip")[..., 0]

            return chosen(log_probs), chosen(reference), reverse_kl(reference, log_probs)

        return map_distributions(
            read,
            distributions,
            jnp.asarray(batch["decoder_target_tokens"]),
            chunk_size=policy.logits_chunk_size,
        )
