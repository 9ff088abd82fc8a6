"""What T5Gemma and T5Gemma 2 have in common: stacks of layers that see a sliding window or everything, and their configuration."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxalign.networks.network_config import NetworkConfig, StackSizes, check_keys

SLIDING, FULL = 0, 1  # the kinds of layers
_SIZES = (
    "emb_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "num_layers",
    "sliding_window",
)
Rotary = tuple[
    float, float
]  # the base of wavelengths, and the factor by which positions are divided


@dataclasses.dataclass(frozen=True)
class Stack:
    """The encoder or the decoder of a `GemmaConfig`.

    Attributes:
      emb_dim: width of the residual stream.
      num_heads: heads of queries.
      num_kv_heads: heads of keys and values, each of which serves ``num_heads / num_kv_heads`` heads of queries.
      head_dim: width of one head; even, because its halves are rotated.
      mlp_dim: hidden width of the feed-forward block.
      num_layers: layers.
      query_pre_attn_scalar: attention scores are divided by its square root.
      sliding_window: tokens. In a sliding layer, a decoder position sees the keys less than this far back, itself included; an encoder
        position sees what `encoder_window` says.
      NORMS_HEADS: whether heads of queries and keys are divided by their root mean square, with learned scales.
    """

    emb_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    num_layers: int
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 4096

    NORMS_HEADS: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in _SIZES:
            self._require_at_least_one(field)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{name}.num_kv_heads is {self.num_kv_heads}; it must divide num_heads={self.num_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"{name}.head_dim is {self.head_dim}; it must be even.")
        require_positive(f"{name}.query_pre_attn_scalar", self.query_pre_attn_scalar)

    def _require_at_least_one(self, field: str) -> None:
        if int(getattr(self, field)) < 1:
            raise ValueError(
                f"{type(self).__name__}.{field} is {getattr(self, field)}; it must be at least 1."
            )

    @property
    def attention_soft_cap(self) -> float | None:
        """Attention scores are squashed into (-cap, cap) by tanh; None for no cap."""
        return None

    @property
    def kinds(self) -> tuple[int, ...]:
        """`SLIDING` or `FULL`, for every layer."""
        raise NotImplementedError

    @property
    def encoder_window(self) -> tuple[int, int]:
        """How many tokens before it and after it an encoder position sees in a sliding layer."""
        raise NotImplementedError

    @property
    def rotaries(self) -> tuple[Rotary, Rotary]:
        """The rotary positions of sliding and of full layers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GemmaConfig(NetworkConfig):
    """Base of the configurations of T5Gemma and T5Gemma 2.

    Attributes:
      vocab_size: rows of an embedding table, padding rows included.
      encoder, decoder: the stacks.
      logits_soft_cap: logits are squashed into (-cap, cap) by tanh; None for no cap.
      start_token: what the decoder reads for token 0, which starts a response in this package's layout of tokens.
      dropout_rate: probability of dropping: embeddings, outputs of blocks, hidden feed-forward activations, outputs of stacks.
      dtype: dtype of activations, ``float32`` or ``bfloat16``; parameters and log-probabilities are always float32.
      scan_layers: stacked layers under `jax.lax.scan` instead of unrolled layers.
      remat_policy: what the backward pass recomputes: ``none``; ``minimal``, all but weight matmuls; ``full``, whole layers.
      param_scan_axis: position of the layer axis in stacked parameters.
      STACK: the class of the stacks.
    """

    vocab_size: int
    encoder: Stack
    decoder: Stack
    logits_soft_cap: float | None = None
    start_token: int = 2
    dropout_rate: float = 0.0
    dtype: str = "float32"
    scan_layers: bool = False
    remat_policy: str = "none"
    param_scan_axis: int = 1

    STACK: ClassVar[type[Stack]]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.vocab_size < 1:
            raise ValueError(f"{name}.vocab_size is {self.vocab_size}; it must be positive.")
        if not 0 <= self.start_token < self.vocab_size:
            raise ValueError(
                f"{name}.start_token is {self.start_token}; it must be a token below {self.vocab_size}."
            )
        self.check_numerics()
        if self.logits_soft_cap is not None:
            require_positive(f"{name}.logits_soft_cap", self.logits_soft_cap)

    @property
    def emb_dim(self) -> int:
        """Width of the decoder's residual stream."""
        return self.stack("decoder").emb_dim

    @property
    def encoder_width(self) -> int:
        return self.stack("encoder").emb_dim

    @property
    def num_encoder_layers(self) -> int:
        """Layers of the encoder."""
        return self.stack("encoder").num_layers

    @property
    def num_decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.stack("decoder").num_layers

    def stack(self, name: str) -> Stack:
        """The ``encoder`` or the ``decoder``."""
        found: Stack = getattr(self, name)
        return found

    def stack_sizes(self, stack: str) -> StackSizes:
        own = self.stack(stack)
        return StackSizes(
            own.emb_dim,
            own.num_heads,
            own.num_kv_heads,
            own.head_dim,
            own.mlp_dim,
            2,
            own.num_layers,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary, read back by `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> GemmaConfig:
        """Inverse of `to_dict`.

        Raises:
          ValueError: a key is unknown, or a required one is missing.
        """
        check_keys(cls, fields, cls.__name__)
        stacks = {}
        for name in ("encoder", "decoder"):
            check_keys(cls.STACK, fields[name], f"{cls.__name__}.{name}")
            stacks[name] = cls.STACK(**fields[name])
        return cls(**fields | stacks)


def layer_kinds(num_layers: int, full_every: int) -> tuple[int, ...]:
    """The kinds of layers of which every `full_every`-th is full."""
    return tuple(
        FULL if number % full_every == 0 else SLIDING for number in range(1, num_layers + 1)
    )


def require_positive(name: str, value: float) -> None:
    """Raises ValueError if a number is not positive and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be positive and finite.")
