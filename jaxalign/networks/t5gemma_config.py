"""The dimensions and numerics of T5Gemma (Zhang et al. 2025, arXiv 2504.06225), an encoder-decoder of Gemma 2's layers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxalign.networks.network_config import NetworkConfig, StackSizes, check_keys

_SIZES = (
    "emb_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "num_layers",
    "sliding_window",
)


@dataclasses.dataclass(frozen=True)
class GemmaStack:
    """The encoder or the decoder of a `T5GemmaConfig`.

    Attributes:
      emb_dim: width of the residual stream.
      num_heads: heads of queries.
      num_kv_heads: heads of keys and values, each of which serves ``num_heads / num_kv_heads`` heads of queries.
      head_dim: width of one head; even, because its halves are rotated.
      mlp_dim: hidden width of the feed-forward block.
      num_layers: layers; the first, third ... see a sliding window, the others everything.
      query_pre_attn_scalar: attention scores are divided by its square root.
      sliding_window: tokens. In such a layer, a decoder position sees the keys less than this far back, itself included; an encoder
        position sees keys up to this far away on both sides.
      rope_theta: base of the wavelengths of rotary positions.
      attention_soft_cap: attention scores are squashed into (-cap, cap) by tanh; None for no cap.
    """

    emb_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    num_layers: int
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 4096
    rope_theta: float = 10000.0
    attention_soft_cap: float | None = 50.0

    def __post_init__(self) -> None:
        for name in _SIZES:
            if int(getattr(self, name)) < 1:
                raise ValueError(
                    f"GemmaStack.{name} is {getattr(self, name)}; it must be at least 1."
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"GemmaStack.num_kv_heads is {self.num_kv_heads}; it must divide num_heads={self.num_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"GemmaStack.head_dim is {self.head_dim}; it must be even.")
        for name in ("query_pre_attn_scalar", "rope_theta"):
            _require_positive(f"GemmaStack.{name}", getattr(self, name))
        if self.attention_soft_cap is not None:
            _require_positive("GemmaStack.attention_soft_cap", self.attention_soft_cap)


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig(NetworkConfig):
    """A T5Gemma, whose encoder and decoder may differ in size. Each has an embedding table of its own.

    Attributes:
      vocab_size: rows of either table, padding rows included.
      encoder, decoder: the stacks.
      logits_via_embedding: project with the decoder's table instead of a separate head; the logits are not scaled.
      logits_soft_cap: logits are squashed into (-cap, cap) by tanh; None for no cap.
      start_token: what the decoder reads for token 0, which starts a response in this package's layout of tokens.
      dropout_rate: probability of dropping: embeddings, outputs of blocks, hidden feed-forward activations, outputs of stacks.
      dtype: dtype of activations, ``float32`` or ``bfloat16``; parameters and log-probabilities are always float32.
      scan_layers: stacked pairs of a sliding and a full layer under `jax.lax.scan` instead of unrolled layers.
      remat_policy: what the backward pass recomputes: ``none``; ``minimal``, all but weight matmuls; ``full``, whole layers.
      param_scan_axis: position of the axis of pairs in stacked parameters.
    """

    vocab_size: int
    encoder: GemmaStack
    decoder: GemmaStack
    logits_via_embedding: bool = True
    logits_soft_cap: float | None = 30.0
    start_token: int = 2
    dropout_rate: float = 0.0
    dtype: str = "float32"
    scan_layers: bool = False
    remat_policy: str = "none"
    param_scan_axis: int = 1

    family: ClassVar[str] = "t5gemma"
    COMPUTATION: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "encoder",
        "decoder",
        "logits_via_embedding",
        "logits_soft_cap",
        "start_token",
    )
    LAYER_CYCLE: ClassVar[tuple[str, ...]] = ("sliding", "full")

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"T5GemmaConfig.vocab_size is {self.vocab_size}; it must be positive.")
        if not 0 <= self.start_token < self.vocab_size:
            raise ValueError(
                f"T5GemmaConfig.start_token is {self.start_token}; it must be a token below {self.vocab_size}."
            )
        self.check_numerics()
        if self.logits_soft_cap is not None:
            _require_positive("T5GemmaConfig.logits_soft_cap", self.logits_soft_cap)
        for name in ("encoder", "decoder"):
            if self.scan_layers and getattr(self, name).num_layers % len(self.LAYER_CYCLE):
                raise ValueError(
                    f"T5GemmaConfig.scan_layers needs an even number of layers, and the {name} has "
                    f"{getattr(self, name).num_layers}; set SCAN_LAYERS = False."
                )

    @property
    def emb_dim(self) -> int:
        """Width of the decoder's residual stream."""
        return self.decoder.emb_dim

    @property
    def encoder_width(self) -> int:
        return self.encoder.emb_dim

    @property
    def num_encoder_layers(self) -> int:
        """Layers of the encoder."""
        return self.encoder.num_layers

    @property
    def num_decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.decoder.num_layers

    def stack_sizes(self, stack: str) -> StackSizes:
        own: GemmaStack = getattr(self, stack)
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
    def from_dict(cls, fields: dict[str, Any]) -> T5GemmaConfig:
        """Inverse of `to_dict`.

        Raises:
          ValueError: a key is unknown, or a required one is missing.
        """
        check_keys(cls, fields, cls.__name__)
        stacks = {}
        for name in ("encoder", "decoder"):
            check_keys(GemmaStack, fields[name], f"{cls.__name__}.{name}")
            stacks[name] = GemmaStack(**fields[name])
        return cls(**fields | stacks)


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be positive and finite.")
