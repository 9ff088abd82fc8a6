"""Annotators: whatever puts numbers on the responses of candidates. They are plug-ins, see `jaxalign.plugins` for their names.

@register_annotator("polite")
@dataclasses.dataclass(frozen=True)
class Polite:
    word: str = "please"
    kind = "scores"

    def identity(self): return {"word": self.word}
    def annotate(self, candidates): return [np.array([...]) for responses in candidates.responses]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.errors import UserError
from jaxalign.plugins import Registry


class Annotator(Protocol):
    """Puts numbers on responses.

    Optional methods: ``check(candidates)`` raises `UserError` before any work if the candidates cannot be annotated, and
    ``counts() -> dict[str, int]`` says what happened so far, for reports (such as malformed verdicts of a judge).

    Attributes:
      kind: the kind of the annotation: "scores", "preferences" or "vectors".
      whole_file: whether the values of a prompt depend on the other prompts. If so, all prompts are annotated in one call; otherwise
        a file is annotated in blocks of prompts, and an interrupted command continues after the last block.
    """

    kind: str
    whole_file: bool

    def identity(self) -> Mapping[str, Any]:
        """Returns everything that the values depend on, as JSON: paths with steps, settings. A continued file must have the same."""

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        """Returns one array per prompt: [K], [K, K] or [K, D] by the kind. NaN is a value that the annotator could not determine."""


class FunctionAnnotator:
    """Scores of a user's own function (prompts, responses, references or None) -> one number per response, as a judge."""

    kind = "scores"
    whole_file = False

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function

    def identity(self) -> Mapping[str, Any]:
        return {"function": f"{self._function.__module__}.{self.name}"}

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        prompts = [
            prompt
            for prompt, texts in zip(candidates.prompts, candidates.responses, strict=True)
            for _ in texts
        ]
        texts = [text for group in candidates.responses for text in group]
        scores = np.asarray(self._function(prompts, texts, None), np.float64)
        if scores.shape != (len(texts),):
            raise UserError(
                f"annotator {self.name!r} gave an array of shape {list(scores.shape)} for {len(texts)} responses; "
                "it must give one number each"
            )
        ends = np.cumsum([len(group) for group in candidates.responses])[:-1]
        return np.split(scores, ends)


_REGISTRY: Registry[Annotator] = Registry("annotator", FunctionAnnotator)
register_annotator = _REGISTRY.register
annotator_names = _REGISTRY.names
get_annotator = _REGISTRY.build


def apply(annotator: Annotator, candidates: Candidates, name: str) -> Candidates:
    """Returns the candidates with the annotator's annotation under a name.

    Raises:
      UserError: the annotator gives arrays of another shape, or an infinite number.
    """
    values = [np.asarray(array, np.float64) for array in annotator.annotate(candidates)]
    for index, array in enumerate(values):
        if np.isinf(array).any():
            raise UserError(
                f"annotation {name!r}: infinite for the prompt {candidates.prompts[index][:60]!r}"
            )
    return candidates.with_annotation(name, Annotation(annotator.kind, values))
