"""Direct Reward Optimisation: DRO-V (policy and value) and DRO-P (policy only). Richemond et al. 2024, arXiv 2405.19107."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import UserError
from jaxalign.losses import dro
from jaxalign.losses.masking import masked_mean, masked_sum
from jaxalign.networks.protocols import Network, Scores, ValuePredictor
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Metric,
    Params,
    PerResponse,
    ReferenceObjective,
    log_ratio_metrics,
    mask_of,
    mean_metric,
    responses_of,
)

RESCALINGS = ("update", "grad", "none", "literal")


def _check_temperature(objective: str, temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UserError(f"{objective}.temperature must be positive and finite, not {temperature}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DROV(ReferenceObjective):
    """DRO-V: a policy and a value function fitted together to ``r - V(x) = tau log(pi / pi_ref)``.

    Attributes:
      value: the value network: `networks.value.ValueNetwork` (the paper's "double network"), `networks.value.SharedTrunkValue` or
        `networks.value_variants.SentinelValue` ("single network"), or `networks.value_variants.ScalarValue` (one learned number).
      temperature: ``tau``, in units of (standardised) reward per nat.
      rescale: where the paper's factor 1/tau on the policy acts. 'update' scales the optimizer's update, which has an effect under any
        optimizer and includes the gradient of a value on the policy's own parameters; 'grad' scales the gradient, which Adafactor and
        Adam normalise away; 'none' is the exact joint loss; 'literal' is the printed algorithm with ``1/2`` in place of ``tau/2``, whose
        fixed point is wrong unless tau = 1.
      values_per_batch: 'multiple' uses V(x) of each prompt, 'single' the mean of V over the batch (the paper's ablation).
    """

    value: ValuePredictor
    temperature: float = 1.0
    rescale: str = "update"
    values_per_batch: str = "multiple"

    name: ClassVar[str] = "dro_v"
    batch_fields: ClassVar[tuple[str, ...]] = ("rewards",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_temperature("DROV", self.temperature)
        if self.rescale not in RESCALINGS:
            raise UserError(
                f"DROV.rescale must be one of {', '.join(RESCALINGS)}, not {self.rescale!r}"
            )
        if self.values_per_batch not in ("multiple", "single"):
            raise UserError(
                f"DROV.values_per_batch must be 'multiple' or 'single', not {self.values_per_batch!r}"
            )
        self.value.check_policy(self.policy)

    def trained(self) -> dict[str, Network]:
        return {"policy": self.policy, "value": self.value}

    def frozen_roles(self) -> tuple[str, ...]:
        needs_reference = self.reference == "live" or self.value.needs_reference
        return ("reference",) if needs_reference else ()

    def update_scales(self) -> dict[str, float]:
        return {"policy": 1.0 / self.temperature} if self.rescale == "update" else {}

    def prepare(self, params: Params, batch: Batch) -> Batch:
        if self.values_per_batch == "multiple":
            return batch
        _, log_ratios, values = self._log_ratios_and_values(params, batch, None)
        targets = dro.value_target(
            log_ratios, responses_of(batch, "rewards"), temperature=self.temperature
        )
        return self._with_batch_means(batch, values, targets)

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        scores, log_ratios, values = self._log_ratios_and_values(params, batch, rng)
        rewards, mask = responses_of(batch, "rewards"), mask_of(batch)
        targets = dro.value_target(log_ratios, rewards, temperature=self.temperature)
        if self.values_per_batch == "single":
            if "mean_value" not in batch:
                batch = self._with_batch_means(batch, values, targets)
            value_losses = dro.batch_value_loss(
                values, targets, batch["mean_value"], batch["mean_target"]
            )
            used_values = jnp.broadcast_to(batch["mean_value"], values.shape)
        else:
            value_losses = dro.value_loss(values, log_ratios, rewards, temperature=self.temperature)
            used_values = values
        policy_losses = dro.policy_loss(
            scores.log_probs,
            log_ratios,
            rewards,
            used_values,
            temperature=self.temperature,
            regularizer=0.5 if self.rescale == "literal" else None,
        )
        policy_scale = self.temperature if self.rescale in ("none", "update") else 1.0
        loss_sum = masked_sum(policy_scale * policy_losses + value_losses, mask)
        metrics = dro_metrics(rewards, used_values, targets, mask)
        return LossOutput(
            loss_sum,
            jnp.sum(mask).astype(jnp.float32),
            {
                **metrics,
                "policy_loss": mean_metric(policy_losses, mask),
                "value_loss": mean_metric(value_losses, mask),
                **log_ratio_metrics(scores, log_ratios, mask),
            },
        )

    def summarize(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return summarize_value_fit(metrics)

    def _log_ratios_and_values(
        self, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Scores, PerResponse, PerResponse]:
        """The policy's scores, the log-ratios, and V(x) of every response's prompt."""
        scores, values = self.value.scores_and_values(self.policy, params, batch, rng=rng)
        log_ratios = self.log_ratios_of(scores, params, batch)
        shape = responses_of(batch, "rewards").shape
        return scores, log_ratios, jnp.broadcast_to(values[:, None], shape)

    def _with_batch_means(self, batch: Batch, values: PerResponse, targets: PerResponse) -> Batch:
        mask = mask_of(batch)
        return {
            **batch,
            "mean_value": jax.lax.stop_gradient(masked_mean(values, mask)),
            "mean_target": jax.lax.stop_gradient(masked_mean(targets, mask)),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class DROP(ReferenceObjective):
    """DRO-P: the policy alone, by the variance of ``r - tau l`` over the step's batch (arXiv 2405.19107, section 4.2).

    Equals DRO-V with one number for V, the batch mean of ``r - tau l``; where prompts differ in difficulty it can end below the
    reference policy.

    Attributes:
      temperature: ``tau``.
      rescale: as in `DROV`.
      literal: the printed pseudo-code: uncentred rewards, ``tau`` in place of ``tau/2``. For comparison only.
    """

    temperature: float = 1.0
    rescale: str = "update"
    literal: bool = False

    name: ClassVar[str] = "dro_p"
    batch_fields: ClassVar[tuple[str, ...]] = ("rewards",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_temperature("DROP", self.temperature)
        if self.rescale not in ("update", "grad", "none"):
            raise UserError(f"DROP.rescale must be update, grad or none, not {self.rescale!r}")

    def update_scales(self) -> dict[str, float]:
        return {"policy": 1.0 / self.temperature} if self.rescale == "update" else {}

    def prepare(self, params: Params, batch: Batch) -> Batch:
        _, log_ratios = self.log_ratios(params, batch, None)
        return self._with_batch_means(batch, log_ratios)

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        scores, log_ratios = self.log_ratios(params, batch, rng)
        if "mean_target" not in batch:
            batch = self._with_batch_means(batch, log_ratios)
        rewards, mask = responses_of(batch, "rewards"), mask_of(batch)
        targets = dro.value_target(log_ratios, rewards, temperature=self.temperature)
        if self.literal:
            losses = dro.literal_variance_policy_loss(
                scores.log_probs,
                log_ratios,
                rewards,
                batch["mean_log_ratio"],
                temperature=self.temperature,
            )
            scale = self.temperature
        else:
            losses = dro.variance_loss(targets, batch["mean_target"])
            scale = 1.0
        # `variance_loss` carries the factor tau of the joint loss already; 'grad' takes it out.
        scale = scale / self.temperature if self.rescale == "grad" else scale
        mean_targets = jnp.broadcast_to(batch["mean_target"], targets.shape)
        return LossOutput(
            masked_sum(scale * losses, mask),
            jnp.sum(mask).astype(jnp.float32),
            {
                **dro_metrics(rewards, mean_targets, targets, mask),
                **log_ratio_metrics(scores, log_ratios, mask),
            },
        )

    def _with_batch_means(self, batch: Batch, log_ratios: PerResponse) -> Batch:
        mask = mask_of(batch)
        targets = dro.value_target(
            log_ratios, responses_of(batch, "rewards"), temperature=self.temperature
        )
        return {
            **batch,
            "mean_target": jax.lax.stop_gradient(masked_mean(targets, mask)),
            "mean_log_ratio": jax.lax.stop_gradient(masked_mean(log_ratios, mask)),
        }


def dro_metrics(
    rewards: PerResponse,
    values: PerResponse,
    targets: PerResponse,
    mask: Array,
) -> dict[str, Metric]:
    """Residual, and the moments from which `summarize_value_fit` derives how well V follows its target."""
    residuals = targets - values
    return {
        "loss": mean_metric(0.5 * jnp.square(residuals), mask),
        "residual": mean_metric(residuals, mask),
        "residual_squared": mean_metric(jnp.square(residuals), mask),
        "reward": mean_metric(rewards, mask),
        "value": mean_metric(values, mask),
        "value_squared": mean_metric(jnp.square(values), mask),
        "target": mean_metric(targets, mask),
        "target_squared": mean_metric(jnp.square(targets), mask),
        "value_times_target": mean_metric(values * targets, mask),
    }


def summarize_value_fit(metrics: Mapping[str, float]) -> dict[str, float]:
    """Replaces second moments by the correlation and R^2 of V against its target ``r - tau l``."""
    kept = dict(metrics)
    value_second, target_second = kept.pop("value_squared"), kept.pop("target_squared")
    product = kept.pop("value_times_target")
    value_variance = value_second - kept["value"] ** 2
    target_variance = target_second - kept["target"] ** 2
    covariance = product - kept["value"] * kept["target"]
    scale = math.sqrt(max(value_variance, 0.0) * max(target_variance, 0.0))
    kept["value_target_correlation"] = covariance / scale if scale > 1e-12 else 0.0
    kept["value_r_squared"] = (
        1.0 - kept["residual_squared"] / target_variance if target_variance > 1e-12 else 0.0
    )
    return kept
