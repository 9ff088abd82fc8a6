"""The base of all objectives, which are small frozen dataclasses that connect networks, batches and the pure losses.

An objective returns the *sum* of its losses and their *weight* apart. Gradient accumulation adds sums and weights over microbatches and
divides once, so k microbatches equal one batch exactly. Statistics of the whole step's batch (KTO's reference point, a
batch mean) come from `Objective.prepare`, which reads the batch before it is split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError
from jaxalign.losses.log_ratios import log_ratio
from jaxalign.losses.masking import masked_sum
from jaxalign.losses.requirements import Requirements
from jaxalign.networks.protocols import Network, PolicyNetwork, Scores

Params = Mapping[str, Any]
Batch = Mapping[str, Any]
PerResponse = Float[Array, "examples responses"]


class Metric(NamedTuple):
    """A weighted mean: totals and weights of microbatches are added, and ``total / weight`` is reported."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


class LossOutput(NamedTuple):
    """The sum of an objective's losses over a (micro)batch, the weight to divide it by, and metrics by name."""

    loss_sum: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Metric]


def responses_of(batch: Batch, field: str) -> PerResponse:
    """A per-response field ``[rows, examples per row, responses]`` as ``[examples, responses]``."""
    array = jnp.asarray(batch[field])
    return array.reshape(-1, array.shape[-1])


def mask_of(batch: Batch) -> Bool[Array, "examples responses"]:
    """Which responses exist; packing and the last batch of an epoch leave empty places."""
    return responses_of(batch, "response_mask") > 0


def mean_metric(values: Array, where: Array) -> Metric:
    """The metric whose reported value is the masked mean of ``values``."""
    return Metric(masked_sum(values, where), jnp.sum(where).astype(jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of all objectives.

    Attributes:
      policy: the policy network; its parameters are ``params['policy']``.
    """

    policy: PolicyNetwork

    name: ClassVar[str] = "objective"
    batch_fields: ClassVar[tuple[str, ...]] = ()
    responses_per_prompt: ClassVar[int | None] = None

    @property
    def temperature(self) -> float | None:
        """Units of reward per nat of log-ratio (tau or beta), if the method has it as an option."""
        return None

    @property
    def units(self) -> str | None:
        """The unit in which values are fitted, 'rewards' or 'feedback', if the method has it as an option."""
        return None

    def trained(self) -> dict[str, Network]:
        """The networks that this objective trains, by role."""
        return {"policy": self.policy}

    def frozen_roles(self) -> tuple[str, ...]:
        """Roles that are read but never trained nor checkpointed."""
        return ()

    def frozen_sources(self) -> dict[str, tuple[PolicyNetwork, str]]:
        """Network and run folder of each frozen role that is not a copy of the initial policy: the policy of that run."""
        return {}

    def roles_in_policy(self) -> tuple[str, ...]:
        """Frozen roles without parameters of their own: the trained policy's hold those that it started from (`Network.holds_start`)."""
        if not self.policy.holds_start or "policy" not in self.trained():
            return ()
        sources = self.frozen_sources()
        return tuple(role for role in self.frozen_roles() if role not in sources)

    def complete(self, params: Params) -> Params:
        """Parameters by role, with those of `roles_in_policy`."""
        inside = self.roles_in_policy()
        if not inside:
            return params
        start = self.policy.start_params(params["policy"])
        return {**params, **dict.fromkeys(inside, start)}

    def required_fields(self) -> tuple[str, ...]:
        """Batch fields that the data must provide."""
        return self.batch_fields

    def requirements(self) -> Requirements:
        """Requirements on the data beyond fields, such as ranges of values and stated margins."""
        return Requirements()

    def update_scales(self) -> dict[str, float]:
        """Factors on the optimizer's update (the learning rate) by role; 1 for the roles that are absent."""
        return {}

    def check_batch(self, batch: Batch) -> None:
        """Raises `UserError` if a batch on the host lacks a field or has a shape that the objective cannot use."""
        missing = [field for field in self.required_fields() if field not in batch]
        if missing:
            raise UserError(
                f"objective {self.name} needs the batch field{'s' if len(missing) > 1 else ''} "
                f"{', '.join(missing)}, which the task does not provide (it has: {', '.join(sorted(batch))})"
            )
        responses = batch["response_mask"].shape[-1]
        if self.responses_per_prompt is not None and responses != self.responses_per_prompt:
            raise UserError(
                f"objective {self.name} needs {self.responses_per_prompt} response(s) per prompt, "
                f"but the task has {responses}"
            )

    def initial_statistics(self) -> dict[str, Any]:
        """Numbers that the method carries from step to step (a running mean), in the role ``statistics``; none by default."""
        return {}

    def observe(self, params: Params, batch: Batch) -> dict[str, Any]:
        """The role ``statistics`` after seeing the whole step's batch; called before its loss, in training only."""
        del batch
        return dict(params["statistics"])

    def prepare(self, params: Params, batch: Batch) -> Batch:
        """Adds statistics of the whole step's batch, without gradient. Called only if the batch is split into microbatches."""
        del params
        return batch

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        """The summed loss of a (micro)batch. ``rng`` drives dropout; None means a deterministic forward pass."""
        raise NotImplementedError

    def summarize(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Derives metrics on the host from the step's means, for example a correlation from its moments."""
        return dict(metrics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceObjective(Objective):
    """Base of objectives on the log-ratio ``l = log pi(y|x) - log pi_ref(y|x)``.

    Attributes:
      reference: 'cached' reads ``reference_log_probs`` stored beside the examples by ``jaxalign score``, so no reference model is in
        memory; 'live' scores with frozen parameters in the role ``reference``.
    """

    reference: str = "cached"

    def __post_init__(self) -> None:
        if self.reference not in ("cached", "live"):
            raise UserError(f"reference must be 'cached' or 'live', not {self.reference!r}")

    def frozen_roles(self) -> tuple[str, ...]:
        return ("reference",) if self.reference == "live" else ()

    def required_fields(self) -> tuple[str, ...]:
        cached = ("reference_log_probs",) if self.reference == "cached" else ()
        return (*self.batch_fields, *cached)

    def log_ratios(
        self, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Scores, PerResponse]:
        """The policy's scores and the log-ratios; only the policy's half carries a gradient."""
        scores = self.policy.score(params["policy"], batch, rng=rng)
        return scores, self.log_ratios_of(scores, params, batch)

    def log_ratios_of(self, scores: Scores, params: Params, batch: Batch) -> PerResponse:
        """The log-ratios of scores that are there already."""
        reference = self.reference_log_probs(params, batch)
        return log_ratio(scores.log_probs, reference, scores.lengths)

    def reference_log_probs(self, params: Params, batch: Batch) -> PerResponse:
        """log pi_ref(y|x) of every response, without gradient."""
        if self.reference == "cached":
            log_probs = responses_of(batch, "reference_log_probs")
        else:
            log_probs = self.policy.score(params["reference"], batch).log_probs
        return jax.lax.stop_gradient(log_probs)


def log_ratio_metrics(scores: Scores, log_ratios: PerResponse, where: Array) -> dict[str, Metric]:
    """Metrics of every method on log-ratios: their size, and the response length, which can explain a preference."""
    return {
        "log_ratio": mean_metric(log_ratios, where),
        "log_ratio_squared": mean_metric(jnp.square(log_ratios), where),
        "log_prob": mean_metric(scores.log_probs, where),
        "response_length": mean_metric(scores.lengths, where),
    }
