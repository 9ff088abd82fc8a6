"""A reward from a few interpretable scores of a response, given by experts or by another model, instead of from its text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxalign.errors import require_range
from jaxalign.networks.protocols import RewardPredictor
from jaxalign.networks.shapes import AnyArray, Batch, Params, PerResponseOutputs

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}
FORMS = ("clean", "released")


@dataclasses.dataclass(frozen=True)
class FeatureReward(RewardPredictor):
    """phi(scores): a linear map or a small MLP, float32 (arXiv 2402.15473, where phi reads seven scores of a summary).

    Attributes:
      num_features: scores of a response.
      hidden: widths of hidden layers; without any, phi is linear, starts at 0 and has no bias.
      activation: 'tanh', 'relu' or 'sigmoid', after hidden layers.
      scale: scores are divided by it; 5 for ratings up to 5.
      form: 'clean' applies the activation after every hidden layer; 'released', as the public code does, after the first hidden layer
        and after the output, which for relu stops learning where phi < 0.
    """

    num_features: int
    hidden: Sequence[int] = ()
    activation: str = "tanh"
    scale: float = 1.0
    form: str = "clean"

    kind: ClassVar[str] = "feature_reward"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.num_features < 1 or any(width < 1 for width in self.hidden):
            raise ValueError(
                f"FeatureReward needs positive sizes, not num_features={self.num_features} and hidden={self.hidden}."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"FeatureReward.activation is {self.activation!r}; it must be one of {', '.join(ACTIVATIONS)}."
            )
        if self.form not in FORMS:
            raise ValueError(f"FeatureReward.form is {self.form!r}; it must be one of {FORMS}.")
        require_range("FeatureReward", "(0, inf)", scale=self.scale)

    def init(self, rng: PRNGKeyArray) -> Params:
        """``{'head': {'layer_0': {'kernel', 'bias'}, ...}}``; under ``head`` so that no optimizer scales updates by its size."""
        if not self.hidden and self.form == "clean":
            return {"head": {"layer_0": {"kernel": jnp.zeros((self.num_features, 1), jnp.float32)}}}
        sizes = (self.num_features, *self.hidden, 1)
        keys = jax.random.split(rng, len(sizes) - 1)
        glorot = jax.nn.initializers.glorot_normal()
        return {
            "head": {
                f"layer_{index}": {
                    "kernel": glorot(key, sizes[index : index + 2], jnp.float32),
                    "bias": jnp.zeros(sizes[index + 1], jnp.float32),
                }
                for index, key in enumerate(keys)
            }
        }

    def rewards(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerResponseOutputs:
        """phi of the batch field ``scores`` of all responses; there is no dropout."""
        del rng
        scores = jnp.asarray(batch["scores"])
        return self.phi(params, scores.reshape(-1, *scores.shape[2:]))

    def phi(
        self, params: Params, scores: Float[AnyArray, "*batch features"]
    ) -> Float[Array, "*batch"]:
        """The reward of each vector of scores."""
        layers = params["head"]
        activate = ACTIVATIONS[self.activation]
        x = jnp.asarray(scores) / self.scale
        for index in range(len(layers)):
            layer = layers[f"layer_{index}"]
            # A sum instead of a matmul: full float32 on every backend, and the layers are tiny.
            x = jnp.sum(x[..., :, None] * layer["kernel"], axis=-2) + layer.get("bias", 0.0)
            hidden = index < len(layers) - 1
            first_or_last = index == 0 or not hidden
            if first_or_last if self.form == "released" else hidden:
                x = activate(x)
        return x[..., 0]

    def penalty(self, params: Params) -> Float[Array, ""]:
        """The sum of the squared weights, biases left out."""
        return jnp.sum(
            jnp.stack([jnp.sum(jnp.square(layer["kernel"])) for layer in params["head"].values()])
        )
