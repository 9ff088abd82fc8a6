"""Finds annotators by name, judges among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.annotation import judges
from jaxalign.annotation.annotators import Annotator, annotator_names, get_annotator
from jaxalign.annotation.judges import Judge
from jaxalign.data.candidates import Candidates


class JudgeAnnotator:
    """The scores of a judge as an annotator."""

    kind = "scores"
    whole_file = False

    def __init__(self, judge: Judge, spec: str) -> None:
        self._judge, self._spec = judge, spec

    def identity(self) -> Mapping[str, Any]:
        return {"judge": self._spec}

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        groups = candidates.responses
        prompts = [
            prompt for prompt, texts in zip(candidates.prompts, groups, strict=True) for _ in texts
        ]
        texts = [text for group in groups for text in group]
        scores = judges.checked_scores(self._judge, prompts, texts)
        return np.split(scores, np.cumsum([len(group) for group in groups])[:-1])


def annotator_of(spec: str) -> Annotator:
    """Returns the annotator of a specification."""
    name = spec.partition(":")[0]
    if name in annotator_names() or name not in judges.judge_names():
        return get_annotator(spec)
    return JudgeAnnotator(judges.get_judge(spec), spec)
