"""A two-tower retriever: a T5 encoder for queries and a small perceptron for vectors of items, which meet in one space."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxalign.errors import require_range
from jaxalign.networks.policy import Policy
from jaxalign.networks.protocols import Network
from jaxalign.networks.shapes import AnyArray, Params, SourceTokens

LEAST_TEMPERATURE, FIRST_TEMPERATURE = 0.01, 0.07  # CLIP's
Features = Float[AnyArray, "rows features"]
Vectors = Float[Array, "rows size"]


@dataclasses.dataclass(frozen=True)
class TwoTower(Network):
    """Query and item vectors of length 1.

    Attributes:
      policy: the encoder of queries is that of this policy.
      item_size: numbers of an item's vector.
      hidden: width of the hidden layer of the item tower.
      size: numbers of the common vectors.
    """

    policy: Policy
    item_size: int
    hidden: int = 256
    size: int = 128

    kind: ClassVar[str] = "two_tower"

    def __post_init__(self) -> None:
        sizes = {"item_size": self.item_size, "hidden": self.hidden, "size": self.size}
        require_range("TwoTower", "[1, inf)", **sizes)

    @property
    def vocab_size(self) -> int:
        return self.policy.vocab_size

    @property
    def dropout_rate(self) -> float:
        return self.policy.dropout_rate

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters of both towers."""
        return self.from_policy(rng, self.policy.init(rng))

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        """Parameters whose query tower is the encoder of a policy; its decoder is left out."""
        keys = jax.random.split(rng, 3)
        emb_dim = self.policy.config.encoder_width
        encoder = {name: branch for name, branch in policy_params.items() if name != "decoder"}
        return {
            "encoder": encoder,
            "query": _dense(keys[0], emb_dim, self.size),
            "hidden": _dense(keys[1], self.item_size, self.hidden),
            "item": _dense(keys[2], self.hidden, self.size),
            "log_scale": jnp.log(jnp.float32(1 / FIRST_TEMPERATURE)),
        }

    def query_vectors(
        self, params: Params, tokens: SourceTokens, *, rng: PRNGKeyArray | None = None
    ) -> Vectors:
        """Vectors of queries, from the mean encoder state over their tokens; dropout only with an rng."""
        present = tokens > 0
        batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": present.astype(jnp.int32)}
        states = self.policy.encode(params["encoder"], batch, rng=rng).astype(jnp.float32)
        total = jnp.sum(jnp.where(present[:, :, None], states, 0.0), axis=1)
        return _unit(_apply(params["query"], total / jnp.maximum(present.sum(1), 1)[:, None]))

    def item_vectors(self, params: Params, vectors: Features) -> Vectors:
        """Vectors of items."""
        hidden = jax.nn.gelu(_apply(params["hidden"], vectors))
        return _unit(_apply(params["item"], hidden))

    def scale(self, params: Params) -> Float[Array, ""]:
        """The inverse temperature, at most 100."""
        return jnp.minimum(jnp.exp(params["log_scale"]), 1 / LEAST_TEMPERATURE)


def _dense(rng: PRNGKeyArray, inputs: int, outputs: int) -> Params:
    glorot = jax.nn.initializers.glorot_normal()
    return {"kernel": glorot(rng, (inputs, outputs), jnp.float32), "bias": jnp.zeros(outputs)}


def _apply(layer: Any, inputs: Any) -> Any:
    return inputs @ layer["kernel"] + layer["bias"]


def _unit(vectors: Any) -> Any:
    return vectors * jax.lax.rsqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + 1e-12)
