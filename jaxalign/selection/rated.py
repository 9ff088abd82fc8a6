"""The selector of methods that learn from rated single responses, such as DRO."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from jaxalign.data.candidates import Candidates
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import kept_fields, scores_of, usable_responses


@register_selector("rated")
@dataclasses.dataclass(frozen=True)
class Rated:
    """Every distinct response with its score as feedback: triplets, for DRO and other methods on single responses.

    A prompt whose responses all have the same score is kept, because a value network learns from it what the prompt is worth.

    Attributes:
      annotation: the scores; of preferences, the mean probability of being preferred is taken.
    """

    annotation: str = "judge"

    def __call__(self, candidates: Candidates) -> Selection:
        scores = scores_of(candidates, self.annotation)
        dropped: Counter[str] = Counter()
        lines = []
        for index, kept in enumerate(usable_responses(candidates, dropped, scores, minimum=1)):
            lines += [
                {
                    **kept_fields(candidates, index),
                    "prompt": candidates.prompts[index],
                    "response": candidates.responses[index][k],
                    "feedback": float(scores[index][k]),
                }
                for k in kept
            ]
        values = [line["feedback"] for line in lines]
        measures = {"mean_feedback": float(np.mean(values))} if values else {}
        return Selection(lines, "triplet", dropped, measures)
