"""The dimensions and numerics of T5Gemma 2 (Zhang et al. 2025, arXiv 2512.14856), an encoder-decoder of Gemma 3's layers. Text only."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxalign.networks.gemma_config import (
    GemmaConfig,
    Rotary,
    Stack,
    layer_kinds,
    require_positive,
)


@dataclasses.dataclass(frozen=True)
class Gemma3Stack(Stack):
    """The encoder or the decoder of a `T5Gemma2Config`.

    Attributes, besides those of `Stack`:
      full_every: every so many layers one sees everything; the others see a sliding window.
      rope_theta: base of the wavelengths of rotary positions in full layers.
      rope_factor: positions are divided by it in full layers.
      local_rope_theta: base of the wavelengths in sliding layers.
    """

    full_every: int = 6
    rope_theta: float = 1_000_000.0
    rope_factor: float = 8.0
    local_rope_theta: float = 10_000.0

    NORMS_HEADS: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least_one("full_every")
        for field in ("rope_theta", "rope_factor", "local_rope_theta"):
            require_positive(f"Gemma3Stack.{field}", getattr(self, field))

    @property
    def kinds(self) -> tuple[int, ...]:
        return layer_kinds(self.num_layers, self.full_every)

    @property
    def encoder_window(self) -> tuple[int, int]:
        return (self.sliding_window + 1) // 2 - 1, self.sliding_window // 2

    @property
    def rotaries(self) -> tuple[Rotary, Rotary]:
        return (self.local_rope_theta, 1.0), (self.rope_theta, self.rope_factor)


@dataclasses.dataclass(frozen=True)
class T5Gemma2Config(GemmaConfig):
    """A T5Gemma 2. One embedding table serves the encoder, the decoder and, transposed, the vocabulary projection, so that both stacks
    have one width.

    Attributes, besides those of `GemmaConfig`:
      eoi_token: the token that ends an image. Its embedding is a parameter apart from the table.
    """

    encoder: Gemma3Stack
    decoder: Gemma3Stack
    eoi_token: int = 256_000

    family: ClassVar[str] = "t5gemma2"
    STACK: ClassVar[type[Stack]] = Gemma3Stack
    COMPUTATION: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "encoder",
        "decoder",
        "logits_soft_cap",
        "start_token",
        "eoi_token",
    )

    @property
    def merges_attention(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eoi_token < 0:
            raise ValueError(f"T5Gemma2Config.eoi_token is {self.eoi_token}; it must be a token.")
        if self.encoder_width != self.emb_dim:
            raise ValueError(
                f"T5Gemma2Config.encoder has emb_dim {self.encoder_width} and the decoder {self.emb_dim}; one table serves both."
            )
