"""Values other than a network of their own: those that the DRO paper compares with (arXiv 2405.19107, figure 5), and controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.networks.policy import Policy, ResponseScores
from jaxalign.networks.protocols import PolicyNetwork, PromptValuePredictor, ValuePredictor
from jaxalign.networks.value import require_same_policy


@dataclasses.dataclass(frozen=True)
class ScalarValue(PromptValuePredictor):
    """One learned number for every prompt, which starts at 0."""

    kind: ClassVar[str] = "scalar_value"

    def init(self, rng: Array) -> dict[str, Any]:
        """Returns ``{'head': scalar}``; under ``head`` so that no optimizer scales its updates by its size."""
        del rng
        return {"head": jnp.zeros((), jnp.float32)}

    def values(
        self, params: Mapping[str, Any], batch: Mapping[str, Any], *, rng: Array | None = None
    ) -> Float[Array, " examples"]:
        """The scalar, once per example."""
        del rng
        rows, examples, _ = batch["response_mask"].shape
        return jnp.broadcast_to(params["head"], (rows * examples,))


@dataclasses.dataclass(frozen=True)
class ZeroValue(PromptValuePredictor):
    """V = 0: the regression of rewards on log-ratios without a value, which has another optimum than DRO."""

    kind: ClassVar[str] = "zero_value"

    def init(self, rng: Array) -> dict[str, Any]:
        """No parameters."""
        del rng
        return {}

    def values(
        self, params: Mapping[str, Any], batch: Mapping[str, Any], *, rng: Array | None = None
    ) -> Float[Array, " examples"]:
        """Zeros."""
        del params, rng
        rows, examples, _ = batch["response_mask"].shape
        return jnp.zeros((rows * examples,), jnp.float32)


@dataclasses.dataclass(frozen=True)
class SentinelValue(ValuePredictor):
    """The logit of a reserved token at the first decoder position, minus the reference policy's: "policy logits as value outputs".

    That position sees the prompt only. The token is taken out of the softmax (`networks.policy.Policy.value_token`), or the value would
    distort log-probabilities. Subtracting the reference's logit makes V = 0 at step 0. The paper does not say how it reduced logits to
    a value; this is our reading.

    Attributes:
      policy: a policy with a ``value_token``; its parameters are the policy's own.
    """

    policy: Policy

    kind: ClassVar[str] = "sentinel_value"
    needs_reference: ClassVar[bool] = True

    def init(self, rng: Array) -> dict[str, Any]:
        """No parameters of its own."""
        del rng
        return {}

    def check_policy(self, policy: PolicyNetwork) -> None:
        require_same_policy("SentinelValue", self.policy, policy)

    def scores_and_values(
        self,
        policy: PolicyNetwork,
        params: Mapping[str, Any],
        batch: Mapping[str, Any],
        *,
        rng: Array | None = None,
    ) -> tuple[ResponseScores, Float[Array, " examples"]]:
        """Reads both from one forward pass of the policy; V also reads the role ``reference``."""
        del policy
        policy_rng = None if rng is None else jax.random.split(rng)[0]
        scores, logits = self.policy.score_and_value_logits(params["policy"], batch, rng=policy_rng)
        return scores, logits - self._start(params, batch)

    def _start(
        self, params: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> Float[Array, " examples"]:
        return jax.lax.stop_gradient(self.policy.value_logits(params["reference"], batch))
