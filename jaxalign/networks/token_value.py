"""A value of every prefix of a response, which by construction cannot see the tokens after it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxalign.networks.decoder_trunk import DecoderTrunk
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.policy import prompt_ids
from jaxalign.networks.protocols import PrefixValuePredictor
from jaxalign.networks.shapes import (
    Batch,
    Params,
    PerExampleOutputs,
    TokenOutputs,
)
from jaxalign.networks.value import ValueHead


@dataclasses.dataclass(frozen=True)
class TokenValueNetwork(DecoderTrunk, PrefixValuePredictor):
    """V(x, y_<t): a separate encoder-decoder T5 with a scalar head on the decoder's states.

    The decoder reads the response shifted right, so its state at position t has seen the prompt and the tokens before t.

    Attributes:
      config: the network; all of it but the vocabulary projection is used.
    """

    config: NetworkConfig

    kind: ClassVar[str] = "token_value"

    def init_head(self, rng: PRNGKeyArray) -> Params:
        return nn.meta.unbox(self._boxed_head(rng))

    def head_axes(self) -> Params:
        return nn.get_partition_spec(jax.eval_shape(self._boxed_head, jax.random.key(0)))

    def token_values(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> TokenOutputs:
        """V before every target token, float32, in units of reward; `rng` switches dropout on. 0 on padding."""
        states = self.states(params, batch, rng=rng)
        values = ValueHead().apply({"params": params["head"]}, states)
        return jnp.where(batch["decoder_segment_ids"] > 0, values, 0.0)

    def values(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerExampleOutputs:
        """V(x), the value before the first token of each example's first response; 0 where there is no example."""
        values = self.token_values(params, batch, rng=rng)
        examples = jnp.arange(1, batch["response_mask"].shape[1] + 1)
        member = prompt_ids(batch)[:, :, None] == examples
        chosen = jnp.take_along_axis(values, jnp.argmax(member, axis=1), axis=1)
        return jnp.where(jnp.any(member, axis=1), chosen, 0.0).reshape(-1)

    def _boxed_head(self, rng: PRNGKeyArray) -> Params:
        return ValueHead().init(rng, jnp.zeros((1, self.config.emb_dim)))["params"]
