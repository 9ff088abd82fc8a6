"""Features of responses as an annotation, whose columns are the scores that a reward of scores trains on (kind `multi`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.annotation import features
from jaxalign.annotation.annotators import register_annotator
from jaxalign.annotation.flat import flat, split
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError


@register_annotator("features")
class Features:
    """Vectors whose columns are features, each under the specification of its extractor.

    Args:
      extractors: specifications of extractors, separated by commas, such as "words,overlap,tokens:runs/sft"; see `features`.
    """

    kind = "vectors"
    whole_file = False

    def __init__(self, extractors: str) -> None:
        self.names = tuple(part.strip() for part in extractors.split(",") if part.strip())
        if not self.names or len(set(self.names)) != len(self.names):
            raise UserError(
                f"annotator 'features': give distinct extractors, separated by commas, not {extractors!r}"
            )
        self._extractors = [features.get_extractor(name) for name in self.names]

    def identity(self) -> Mapping[str, Any]:
        return {"features": list(self.names)}

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        return split(features.extract(self._extractors, *flat(candidates)), candidates)
