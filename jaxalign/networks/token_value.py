"""A value of every prefix of a response, which by construction cannot see the tokens after it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy, prompt_ids
from jaxalign.networks.shapes import Batch, Params, PerExample, TokenValues
from jaxalign.networks.value import ValueHead, require_same_shapes


@dataclasses.dataclass(frozen=True)
class TokenValueNetwork:
    """V(x, y_<t): an encoder-decoder T5 of its own with a scalar head on the decoder's states.

    The decoder reads the response shifted right, so its state at position t has seen the prompt and the tokens before t.

    Attributes:
      config: the network; all of it but the vocabulary projection is used.
    """

    config: T5Config

    kind: ClassVar[str] = "token_value"

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters ``{'token_embedder', 'encoder', 'decoder', 'head'}``."""
        trunk_rng, head_rng = jax.random.split(rng)
        return self._with_head(self._trunk.init(trunk_rng), head_rng)

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        """A policy's parameters without its vocabulary projection (same scanning), and a new random head.

        Raises:
          ValueError: the policy's parameters have other names or shapes.
        """
        params = self._with_head(jax.tree.map(jnp.copy, policy_params), rng)
        require_same_shapes(params, self.abstract_params())
        return params

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, without making them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def logical_axes(self) -> Params:
        """A PartitionSpec of logical axis names for every parameter."""
        head = jax.eval_shape(self._boxed_head, jax.random.key(0))
        return {
            **_without_projection(self._trunk.logical_axes()),
            "head": nn.get_partition_spec(head),
        }

    def description(self) -> dict[str, Any]:
        """JSON from which the network can be built again."""
        return {"kind": self.kind, "config": self.config.to_dict()}

    def token_values(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> TokenValues:
        """V before every target token, float32, in units of reward; `rng` switches dropout on. 0 on padding."""
        states = self._trunk.decode(params, batch, rng=rng)
        values = ValueHead().apply({"params": params["head"]}, states)
        return jnp.where(batch["decoder_segment_ids"] > 0, values, 0.0)

    def values(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerExample:
        """V(x), the value before the first token of each example's first response; 0 where there is no example."""
        values = self.token_values(params, batch, rng=rng)
        examples = jnp.arange(1, batch["response_mask"].shape[1] + 1)
        member = prompt_ids(batch)[:, :, None] == examples
        chosen = jnp.take_along_axis(values, jnp.argmax(member, axis=1), axis=1)
        return jnp.where(jnp.any(member, axis=1), chosen, 0.0).reshape(-1)

    @property
    def _trunk(self) -> Policy:
        return Policy(self.config)

    def _boxed_head(self, rng: PRNGKeyArray) -> Params:
        return ValueHead().init(rng, jnp.zeros((1, self.config.emb_dim)))["params"]

    def _with_head(self, policy_params: Params, rng: PRNGKeyArray) -> Params:
        head = nn.meta.unbox(self._boxed_head(rng))
        return {**_without_projection(policy_params), "head": head}


def _without_projection(policy_params: Params) -> Params:
    decoder = policy_params["decoder"]
    return {
        **policy_params,
        "decoder": {name: leaf for name, leaf in decoder.items() if name != "logits_dense"},
    }
