"""Names for the array shapes that the networks' signatures speak of.

Dimensions: `rows` of a batch; `length` of a row, `source` for prompts and `target` for responses where both occur; `emb`, `vocab`,
`heads`, `head_dim` of the network; `examples` = rows x examples per row, `responses` per example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Int

Params = Any  # a nested dict of float32 arrays
Batch = Mapping[str, Any]  # of arrays; see the data pipeline for its keys

Tokens = Int[Array, "rows length"]
TokenValues = Float[Array, "rows length"]
SourceTokens = Int[Array, "rows source"]
TargetTokens = Int[Array, "rows target"]
PerExample = Float[Array, " examples"]
PerResponse = Float[Array, "examples responses"]

Vectors = Float[Array, "*batch emb"]
Scalars = Float[Array, "*batch"]
Logits = Float[Array, "*batch vocab"]
Hidden = Float[Array, "rows length emb"]
Encoded = Float[Array, "rows source emb"]
Decoded = Float[Array, "rows target emb"]
Pooled = Float[Array, "rows row_examples emb"]
RowValues = Float[Array, "rows row_examples"]
Kernel = Float[Array, "emb vocab"]

Heads = Float[Array, "rows heads length head_dim"]
Joined = Float[Array, "rows length joined"]
QuerySegments = Int[Array, "rows queries"]
KeySegments = Int[Array, "rows keys"]
Mask = Bool[Array, "_rows 1 queries keys"]
PositionBias = Float[Array, "1 heads queries keys"]
# Rows and heads of a bias may be 1, to be broadcast.
Bias = Float[Array, "_rows _heads queries keys"]
