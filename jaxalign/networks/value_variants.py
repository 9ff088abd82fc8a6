"""Values other than a network of its own: what the DRO paper compares with (arXiv 2405.19107, figure 5), and controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class ScalarValue:
    """One learned number for every prompt, starting at 0."""

    def init(self, rng: Array) -> dict[str, Any]:
        """Returns ``{'head': scalar}``; under ``head`` so that no optimizer scales its updates by its size."""
        del rng
        return {"head": jnp.zeros((), jnp.float32)}

    def logical_axes(self) -> dict[str, Any]:
        """The scalar is replicated."""
        return {"head": PartitionSpec()}

    def values(
        self, params: Mapping[str, Any], batch: Mapping[str, Any], *, rng: Array | None = None
    ) -> Float[Array, " examples"]:
        """The scalar, once per example."""
        del rng
        rows, examples, _ = batch["response_mask"].shape
        return jnp.broadcast_to(params["head"], (rows * examples,))


@dataclasses.dataclass(frozen=True)
class ZeroValue:
    """V = 0: the regression of rewards on log-ratios without a value, which has another optimum than DRO."""

    def init(self, rng: Array) -> dict[str, Any]:
        """No parameters."""
        del rng
        return {}

    def logical_axes(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    def values(
        self, params: Mapping[str, Any], batch: Mapping[str, Any], *, rng: Array | None = None
    ) -> Float[Array, " examples"]:
        """Zeros."""
        del params, rng
        rows, examples, _ = batch["response_mask"].shape
        return jnp.zeros((rows * examples,), jnp.float32)


@dataclasses.dataclass(frozen=True)
class SentinelValue:
    """ "Policy logits as value outputs": the logit of a reserved token at the first decoder position, minus the reference policy's.

    That position sees the prompt only. The token is taken out of the softmax (`networks.policy.Policy.value_token`), or the value would
    distort log-probabilities. Subtracting the reference's logit makes V = 0 at step 0. The paper does not say how it reduced logits to
    a value; this is our reading.

    Attributes:
      policy: a policy with a ``value_token``; its parameters are the policy's own.
    """

    policy: Any

    reads_roles = True
    needs_reference = True

    def init(self, rng: Array) -> dict[str, Any]:
        """No parameters of its own."""
        del rng
        return {}

    def logical_axes(self) -> dict[str, Any]:
        """No parameters of its own."""
        return {}

    def values(
        self, params: Mapping[str, Any], batch: Mapping[str, Any], *, rng: Array | None = None
    ) -> Float[Array, " examples"]:
        """V(x) from the roles ``policy`` and ``reference``."""
        logits = self.policy.value_logits(params["policy"], batch, rng=rng)
        return logits - self._start(params, batch)

    def scores_and_values(
        self, params: Mapping[str, Any], batch: Mapping[str, Any], *, rng: Array | None = None
    ) -> tuple[Any, Float[Array, " examples"]]:
        """The policy's `score` and `values`, of one forward pass of it."""
        scores, logits = self.policy.score_and_value_logits(params["policy"], batch, rng=rng)
        return scores, logits - self._start(params, batch)

    def _start(
        self, params: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> Float[Array, " examples"]:
        return jax.lax.stop_gradient(self.policy.value_logits(params["reference"], batch))
