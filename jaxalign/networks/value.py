"""Value networks: a scalar per prompt, which by construction does not depend on any response."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxalign.errors import UserError
from jaxalign.networks.architecture import architecture_of
from jaxalign.networks.config import T5Config
from jaxalign.networks.image_patches import ImageEmbedder, Patches, blank, patches_of, placed
from jaxalign.networks.leaves import require_same_shapes
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.policy import Policy, ResponseScores
from jaxalign.networks.protocols import PolicyNetwork, PromptValuePredictor, ValuePredictor
from jaxalign.networks.shapes import (
    Batch,
    Hidden,
    Params,
    PerExampleOutputs,
    Pooled,
    RowValues,
    Scalars,
    Tokens,
    Vectors,
    unboxed,
)


class ValueHead(nn.Module):
    """A float32 linear map from a pooled state to a scalar, with small random weights and bias 0."""

    @nn.compact
    def __call__(self, pooled: Vectors) -> Scalars:
        emb_dim = pooled.shape[-1]
        init = nn.initializers.normal(1e-2 / emb_dim**0.5)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(init, ("embed", None)),
            (emb_dim, 1),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, (None,)),
            (1,),
            jnp.float32,
        )
        # A sum instead of a matmul: full float32 on every backend.
        return jnp.sum(pooled.astype(jnp.float32) * kernel[:, 0], axis=-1) + bias[0]


class PromptValue(nn.Module):
    """Embedding, encoder and head."""

    config: NetworkConfig

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        segment_ids: Tokens,
        num_examples: int,
        patches: Patches | None = None,
        *,
        deterministic: bool = True,
    ) -> RowValues:
        architecture = architecture_of(self.config)
        embedded = architecture.embedding(self.config, name="token_embedder")(tokens)
        if isinstance(self.config, T5Config) and self.config.image_size:
            embedder = ImageEmbedder(self.config, name="image_embedder")
            if patches is not None:
                embedded = placed(embedded, tokens, embedder(patches))
            elif self.is_initializing():
                embedder(blank(self.config))
        encoder = architecture.encoder(self.config, name="encoder")
        states = encoder(embedded, segment_ids, deterministic=deterministic)
        return ValueHead(name="head")(pool_segments(states, segment_ids, num_examples))


def pool_segments(
    states: Hidden,
    segment_ids: Tokens,
    num_examples: int,
) -> Pooled:
    """Float32 mean of the states of each segment 1..num_examples; zeros for an absent one."""
    member = segment_ids[:, :, None] == jnp.arange(1, num_examples + 1)
    weights = member.astype(jnp.float32)
    # Exact zeros keep values on padding, NaN included, out of the mean.
    states = jnp.where((segment_ids > 0)[:, :, None], states.astype(jnp.float32), 0.0)
    sums = jnp.einsum("rlp,rle->rpe", weights, states, precision="highest")
    return sums / jnp.maximum(jnp.sum(weights, axis=1), 1.0)[:, :, None]


@dataclasses.dataclass(frozen=True)
class ValueNetwork(PromptValuePredictor):
    """V(x) with its own parameters: an encoder over the prompt, masked mean, linear head.

    Attributes:
      config: the network; only its encoder half is used.
      max_value: the value is this number times the sigmoid of the head, for rewards in [0, max_value]; None for the head itself.
    """

    config: NetworkConfig
    max_value: float | None = None

    kind: ClassVar[str] = "value"

    def __post_init__(self) -> None:
        if self.max_value is not None and not 0 < self.max_value < math.inf:
            raise ValueError(f"max_value is {self.max_value}; it must be positive, or None.")

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def dropout_rate(self) -> float:
        return self.config.dropout_rate

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters ``{'token_embedder', 'encoder', 'head'}``."""
        return _initialise(self.config, rng)

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        """Embedding and encoder copied from a policy (same scanning), and a new random head.

        Raises:
          ValueError: the policy's parameters have other names or shapes.
        """
        params = {
            "token_embedder": jax.tree.map(jnp.copy, policy_params["token_embedder"]),
            "encoder": jax.tree.map(jnp.copy, policy_params["encoder"]),
            **{
                name: jax.tree.map(jnp.copy, branch)
                for name, branch in policy_params.items()
                if name == "image_embedder"
            },
            "head": _initialise_head(self.config.encoder_width, rng),
        }
        require_same_shapes(params, self.abstract_params())
        return params

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, without making them."""
        return unboxed(_abstract(self.config))

    def logical_axes(self) -> Params:
        """A PartitionSpec of logical axis names for every parameter."""
        return nn.get_partition_spec(_abstract(self.config))

    def values(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerExampleOutputs:
        """V of every example's prompt, in units of reward; `rng` switches dropout on. Absent examples get the bias."""
        num_examples = batch["response_mask"].shape[1]
        values = PromptValue(self.config).apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["encoder_segment_ids"],
            num_examples,
            patches_of(self.config, params, batch),
            deterministic=rng is None,
            rngs=None if rng is None else {"dropout": rng},
        )
        if self.max_value is not None:
            values = self.max_value * jax.nn.sigmoid(values)
        return values.reshape(-1)


@dataclasses.dataclass(frozen=True)
class SharedTrunkValue(ValuePredictor):
    """V(x) as a head on the policy's own encoder; its gradient reaches the policy's parameters unless the caller stops it."""

    policy: Policy

    kind: ClassVar[str] = "shared_trunk_value"

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters of the head, ``{'head': {'kernel', 'bias'}}``."""
        return {"head": _initialise_head(self.policy.config.encoder_width, rng)}

    def logical_axes(self) -> Params:
        """A PartitionSpec of logical axis names for the head's parameters."""
        emb_dim = self.policy.config.encoder_width
        boxed = jax.eval_shape(functools.partial(_boxed_head, emb_dim), jax.random.key(0))
        return {"head": nn.get_partition_spec(boxed)}

    def check_policy(self, policy: PolicyNetwork) -> None:
        require_same_policy("SharedTrunkValue", self.policy, policy)

    def scores_and_values(
        self,
        policy: PolicyNetwork,
        params: Mapping[str, Params],
        batch: Batch,
        *,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[ResponseScores, PerExampleOutputs]:
        """Encodes the prompts once for both; V reads the encoder of role ``policy`` and the head of role ``value``."""
        del policy
        policy_rng = None if rng is None else jax.random.split(rng)[0]
        scores, states = self.policy.score_and_encode(params["policy"], batch, rng=policy_rng)
        num_examples = batch["response_mask"].shape[1]
        pooled = pool_segments(states, batch["encoder_segment_ids"], num_examples)
        head = ValueHead()
        return scores, head.apply({"params": params["value"]["head"]}, pooled).reshape(-1)


def require_same_policy(value: str, own: PolicyNetwork, trained: PolicyNetwork) -> None:
    """Raises UserError if a value reads the states of another policy network than the one that is trained."""
    if own != trained:
        raise UserError(
            f"{value}.policy is another policy network than the objective's; give both the same"
        )


def _boxed(config: NetworkConfig, rng: PRNGKeyArray) -> Params:
    tokens = jnp.ones((1, 2), jnp.int32)
    return PromptValue(config).init(rng, tokens, tokens, 1)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _initialise(config: NetworkConfig, rng: PRNGKeyArray) -> Params:
    return nn.meta.unbox(_boxed(config, rng))


def _abstract(config: NetworkConfig) -> Params:
    return jax.eval_shape(functools.partial(_boxed, config), jax.random.key(0))


def _boxed_head(emb_dim: int, rng: PRNGKeyArray) -> Params:
    return ValueHead().init(rng, jnp.zeros((1, emb_dim)))["params"]


def _initialise_head(emb_dim: int, rng: PRNGKeyArray) -> Params:
    return nn.meta.unbox(_boxed_head(emb_dim, rng))
