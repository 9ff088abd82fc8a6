"""The dimensions and numerics of a T5 encoder-decoder, under T5X's names."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxalign.networks.image_tokens import check_image_sizes
from jaxalign.networks.network_config import NetworkConfig, StackSizes, check_keys, one_of

ACTIVATIONS = ("gelu", "relu", "silu", "linear")
ENCODER_FUSIONS = ("last", "gated")
_SIZES = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
)


@dataclasses.dataclass(frozen=True)
class T5Config(NetworkConfig):
    """A T5 encoder-decoder, or an umT5.

    Attributes:
      vocab_size: rows of the embedding table, padding rows included.
      emb_dim: width of the residual stream.
      num_heads: attention heads.
      head_dim: width of one head; ``num_heads * head_dim`` need not equal ``emb_dim``.
      mlp_dim: hidden width of the feed-forward block.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      mlp_activations: ``('gelu', 'linear')`` is T5 1.1's gated unit, ``('relu',)`` is T5 1.0's.
      logits_via_embedding: project with the embedding table (T5 1.0) instead of a separate head.
      dropout_rate: probability of dropping, in every place where T5 has dropout.
      dtype: dtype of activations, ``float32`` or ``bfloat16``; parameters and log-probabilities are always float32.
      relative_attention_num_buckets: buckets of the relative-position table.
      relative_attention_max_distance: tokens; all longer distances share a bucket.
      relative_attention_per_layer: a relative-position table in every layer (umT5) instead of one per stack (T5).
      blockwise_attention_length: keys from which on attention is computed block by block, in memory that is linear in the length
        (`networks.blockwise_attention`); a block has a quarter of these keys. 0: never.
      float32_attention_logits: compute attention scores and their softmax in float32 for every `dtype`.
      scan_layers: one stacked layer under `jax.lax.scan` (short compile) instead of unrolled layers.
      remat_policy: what the backward pass recomputes: ``none``; ``minimal``, all but weight matmuls; ``full``, whole layers.
      param_scan_axis: position of the layer axis in stacked parameters.
      one_hot_embedding: look tokens up by a one-hot matmul, which partitions better than a gather when the vocabulary is sharded.
      encoder_fusion: what the decoder reads of the encoder: ``last``, the last layer's states (T5); ``gated``, the outputs of all layers
        (`networks.encoder_fusion`).
      image_size: pixels of the side of an image in a prompt; 0 for a network that reads text only.
      patch_size: pixels of the side of one of its patches, each of which is a position of the encoder.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    dropout_rate: float = 0.0
    dtype: str = "float32"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_attention_per_layer: bool = False
    blockwise_attention_length: int = 2048
    float32_attention_logits: bool = False
    scan_layers: bool = False
    remat_policy: str = "none"
    param_scan_axis: int = 1
    one_hot_embedding: bool = False
    encoder_fusion: str = "last"
    image_size: int = 0
    patch_size: int = 0

    family: ClassVar[str] = "t5"
    # The fields of parts that T5 does not have, with T5's values.
    EXTENSIONS: ClassVar[dict[str, Any]] = {
        "encoder_fusion": "last",
        "image_size": 0,
        "patch_size": 0,
    }
    COMPUTATION: ClassVar[tuple[str, ...]] = (
        *_SIZES,
        "mlp_activations",
        "logits_via_embedding",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "relative_attention_per_layer",
        *EXTENSIONS,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for name in _SIZES:
            if int(getattr(self, name)) < 1:
                raise ValueError(
                    f"T5Config.{name} is {getattr(self, name)}; it must be at least 1."
                )
        self.check_numerics()
        if self.blockwise_attention_length < 0:
            raise ValueError(
                f"T5Config.blockwise_attention_length is {self.blockwise_attention_length}; it must be 0 (never) or a number of tokens."
            )
        self.check_choice("encoder_fusion", ENCODER_FUSIONS)
        check_image_sizes("T5Config", self.image_size, self.patch_size)
        if not self.mlp_activations:
            raise ValueError("T5Config.mlp_activations is empty; T5 1.1 uses ('gelu', 'linear').")
        for name in self.mlp_activations:
            one_of("T5Config.mlp_activations", name, ACTIVATIONS)
        if self.relative_attention_num_buckets < 4 or self.relative_attention_num_buckets % 2:
            raise ValueError(
                f"T5Config.relative_attention_num_buckets is {self.relative_attention_num_buckets}; "
                "it must be an even number of at least 4."
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ValueError(
                f"T5Config.relative_attention_max_distance is {self.relative_attention_max_distance}; it must exceed "
                f"half of relative_attention_num_buckets={self.relative_attention_num_buckets}."
            )

    @property
    def fuses_encoder_layers(self) -> bool:
        """Whether the decoder reads the outputs of all encoder layers."""
        return self.encoder_fusion != "last"

    def blocks_attention(self, num_keys: int) -> bool:
        """Whether attention over this number of keys is computed block by block."""
        return 0 < self.blockwise_attention_length <= num_keys

    def stack_sizes(self, stack: str) -> StackSizes:
        return StackSizes(
            self.emb_dim,
            self.num_heads,
            self.num_heads,
            self.head_dim,
            self.mlp_dim,
            len(self.mlp_activations),
            self.num_encoder_layers if stack == "encoder" else self.num_decoder_layers,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary, read back by `from_dict`."""
        fields = dataclasses.asdict(self)
        fields["mlp_activations"] = list(self.mlp_activations)
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> T5Config:
        """Inverse of `to_dict`.

        Raises:
          ValueError: a key is unknown or a required one is missing.
        """
        check_keys(cls, fields, cls.__name__)
        # JSON has a list where the field is a tuple.
        return cls(**fields | {k: tuple(v) for k, v in fields.items() if isinstance(v, list)})
