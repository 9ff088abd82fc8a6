"""The decoder layers of T5Gemma 2. Its encoder layers are T5Gemma's."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn

from jaxalign.networks.shapes import AnyArray, AnyMask, Encoded, Hidden
from jaxalign.networks.t5gemma_blocks import Source, joined
from jaxalign.networks.t5gemma_layers import (
    AXES,
    GemmaEncoderLayer,
    KeysAndValues,
    Kind,
    View,
    extended,
    in_groups,
    view_of,
)


class MergedDecoderLayer(GemmaEncoderLayer):
    """One attention over earlier target positions and the encoded prompt, with one softmax (arXiv 2512.14856), and feed-forward.

    The prompt has the same projections to keys and values as the target, and no positions. Its keys are seen whatever the window.
    """

    stack: ClassVar[str] = "decoder"

    def __call__(  # type: ignore[override]
        self,
        x: Hidden,
        kind: Kind,
        encoded: Encoded,
        sliding: View,
        full: View,
        cross_mask: AnyMask,
        deterministic: bool,
    ) -> Hidden:
        x = nn.with_logical_constraint(x, AXES)
        view = view_of(kind, sliding, full)
        y = self.pre_attention_layer_norm(x)
        own = Source(*self.attention.keys_and_values(y, view.rotation), view.mask)
        prompt = Source(*self.sources(encoded), cross_mask)
        y = self.attention.attend(y, joined(own, prompt), rotation=view.rotation)
        return self.rest(x, y, deterministic)

    def sources(self, encoded: Encoded) -> KeysAndValues:
        """The keys and values of an encoded prompt; they have no positions."""
        return self.attention.keys_and_values(encoded)

    def step(
        self, x: Hidden, cache: KeysAndValues, slot: AnyArray, view: View, prompt: Source
    ) -> tuple[Hidden, KeysAndValues]:
        """One target position of several sequences per row; arguments as in `GemmaDecoderLayer.step`."""
        y = in_groups(self.pre_attention_layer_norm(x), cache)
        cache = extended(cache, self.attention.keys_and_values(y, view.rotation), slot)
        own = Source(*cache, view.mask)
        y = self.attention.attend(y, own, prompt, rotation=view.rotation)
        return self.rest(x, y.reshape(x.shape), True), cache
