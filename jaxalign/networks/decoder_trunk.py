"""An encoder-decoder without its vocabulary projection, under a scalar head: what value and reward networks on decoder states share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxalign.networks.leaves import require_same_shapes
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.policy import Policy
from jaxalign.networks.protocols import Network
from jaxalign.networks.shapes import Batch, Decoded, Params


class DecoderTrunk(Network):
    """Base of networks that read decoder states. A subclass is a dataclass with the field ``config``, and has a head."""

    config: NetworkConfig

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def dropout_rate(self) -> float:
        return self.config.dropout_rate

    def init_head(self, rng: PRNGKeyArray) -> Params:
        """Random parameters of the head."""
        raise NotImplementedError

    def head_axes(self) -> Params:
        """A PartitionSpec of logical axis names for every parameter of the head."""
        raise NotImplementedError

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters ``{'token_embedder', 'encoder', 'decoder', 'head'}``."""
        trunk_rng, head_rng = jax.random.split(rng)
        return {
            **_without_projection(self._policy.init(trunk_rng)),
            "head": self.init_head(head_rng),
        }

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        """A policy's parameters without its vocabulary projection (same scanning), and a new random head.

        Raises:
          ValueError: the policy's parameters have other names or shapes.
        """
        trunk = _without_projection(jax.tree.map(jnp.copy, policy_params))
        params = {**trunk, "head": self.init_head(rng)}
        require_same_shapes(params, self.abstract_params())
        return params

    def logical_axes(self) -> Params:
        """A PartitionSpec of logical axis names for every parameter."""
        return {**_without_projection(self._policy.logical_axes()), "head": self.head_axes()}

    def states(self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None) -> Decoded:
        """The decoder states, one for every target position; `rng` switches dropout on."""
        return self._policy.decode(params, batch, rng=rng)

    @property
    def _policy(self) -> Policy:
        return Policy(self.config)


def _without_projection(policy_params: Params) -> Params:
    decoder = policy_params["decoder"]
    return {
        **policy_params,
        "decoder": {name: leaf for name, leaf in decoder.items() if name != "logits_dense"},
    }
