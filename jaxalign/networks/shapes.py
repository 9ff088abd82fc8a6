"""Names for the array shapes that the networks' signatures speak of.

Dimensions: `rows` of a batch; `length` of a row, `source` for prompts and `target` for responses where both occur; `emb`, `vocab`,
`heads`, `head_dim` of the network; `examples` = rows x examples per row, `responses` per example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

AnyArray = Array | np.ndarray

Params = Any  # a nested dict of float32 arrays
Batch = Mapping[str, Any]  # of arrays; see the data pipeline for its keys

Tokens = Int[AnyArray, "rows length"]
TokenValues = Float[AnyArray, "rows length"]
SourceTokens = Int[AnyArray, "rows source"]
TargetTokens = Int[AnyArray, "rows target"]
PerExample = Float[AnyArray, " examples"]
PerResponse = Float[AnyArray, "examples responses"]

# What networks return, as opposed to what they also accept from the host.
TokenOutputs = Float[Array, "rows length"]
PerExampleOutputs = Float[Array, " examples"]
PerResponseOutputs = Float[Array, "examples responses"]
Embedded = Float[Array, "rows length emb"]
GreedyTokens = Int[Array, "rows target"]

Vectors = Float[AnyArray, "*batch emb"]
Scalars = Float[AnyArray, "*batch"]
Logits = Float[AnyArray, "*batch vocab"]
Hidden = Float[AnyArray, "rows length emb"]
# As wide as the states, or as several of them side by side (`encoder_fusion`).
Encoded = Float[AnyArray, "rows source encoded_emb"]
Decoded = Float[AnyArray, "rows target emb"]
Pooled = Float[AnyArray, "rows row_examples emb"]
RowValues = Float[AnyArray, "rows row_examples"]
Kernel = Float[AnyArray, "emb vocab"]

Heads = Float[AnyArray, "rows heads length head_dim"]
SourceHeads = Float[AnyArray, "rows heads source head_dim"]
SourceLayers = Float[AnyArray, "rows mixed heads source head_dim"]
Joined = Float[AnyArray, "rows length joined"]
QuerySegments = Int[AnyArray, "rows queries"]
KeySegments = Int[AnyArray, "rows keys"]
Mask = Bool[AnyArray, "_rows 1 queries keys"]
AnyMask = Bool[AnyArray, "_rows 1 _queries _keys"]  # for functions that read several
PositionBias = Float[AnyArray, "1 heads queries keys"]
OffsetBiases = Float[AnyArray, "heads offsets"]  # one per distance of key and query
# Rows and heads of a bias may be 1, to be broadcast.
Bias = Float[AnyArray, "_rows _heads queries keys"]
CrossBias = Float[AnyArray, "_rows _heads _queries source"]


def unboxed(shapes: Any) -> Params:
    """Shapes of parameters out of Flax's boxes with their axis names.

    Flax's own `unbox` constrains each leaf to the mesh that is active, if one is, and a shape without an array cannot be constrained.
    """
    return jax.tree.map(
        lambda box: box.unbox(apply_constraint=False),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )
