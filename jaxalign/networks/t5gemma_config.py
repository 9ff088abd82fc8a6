"""The dimensions and numerics of T5Gemma (Zhang et al. 2025, arXiv 2504.06225), an encoder-decoder of Gemma 2's layers."""

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
class GemmaStack(Stack):
    """The encoder or the decoder of a `T5GemmaConfig`. The first, third ... layers see a sliding window, the others everything.

    Attributes, besides those of `Stack`:
      rope_theta: base of the wavelengths of rotary positions.
      attention_soft_cap: attention scores are squashed into (-cap, cap) by tanh; None for no cap.
    """

    rope_theta: float = 10000.0
    attention_soft_cap: float | None = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("GemmaStack.rope_theta", self.rope_theta)
        if self.attention_soft_cap is not None:
            require_positive("GemmaStack.attention_soft_cap", self.attention_soft_cap)

    @property
    def kinds(self) -> tuple[int, ...]:
        return layer_kinds(self.num_layers, 2)

    @property
    def encoder_window(self) -> tuple[int, int]:
        return self.sliding_window, self.sliding_window

    @property
    def rotaries(self) -> tuple[Rotary, Rotary]:
        return (self.rope_theta, 1.0), (self.rope_theta, 1.0)


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig(GemmaConfig):
    """A T5Gemma, whose encoder and decoder may differ in size. Each has an embedding table of its own. Pairs of a sliding and a full
    layer are scanned.

    Attributes, besides those of `GemmaConfig`:
      logits_via_embedding: project with the decoder's table instead of a separate head; the logits are not scaled.
    """

    encoder: GemmaStack
    decoder: GemmaStack
    logits_soft_cap: float | None = 30.0
    logits_via_embedding: bool = True

    family: ClassVar[str] = "t5gemma"
    STACK: ClassVar[type[Stack]] = GemmaStack
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
        super().__post_init__()
        for name in ("encoder", "decoder"):
            if self.scan_layers and self.stack(name).num_layers % len(self.LAYER_CYCLE):
                raise ValueError(
                    f"T5GemmaConfig.scan_layers needs an even number of layers, and the {name} has "
                    f"{self.stack(name).num_layers}; set SCAN_LAYERS = False."
                )
