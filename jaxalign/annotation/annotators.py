"""Annotators: whatever puts numbers on the responses of candidates. They are plug-ins, see `jaxalign.plugins` for their names.

@register_annotator("polite")
@dataclasses.dataclass(frozen=True)
class Polite:
    word: str = "please"
    kind = "scores"
    whole_file = False

    def identity(self):
        return {"word": self.word}

    def annotate(self, candidates):
        return [np.array([...]) for responses in candidates.responses]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxalign.annotation import judges
from jaxalign.annotation.flat import flat, references_of, split
from jaxalign.annotation.judged import JudgeAnnotator
from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.errors import UserError
from jaxalign.plugins import Registry, source_digest

# The modules with the annotators of this package. They are imported when the first annotator is looked up.
_BUILT_IN = (
    "embeddings",
    "feature_vectors",
    "labels",
    "llm_annotator",
    "policy_scores",
    "self_judge",
    "uncertainty",
)


class Annotator(Protocol):
    """Puts numbers on responses.

    Optional methods: ``check(candidates)`` raises `UserError` before any work if the candidates cannot be annotated, and
    ``counts() -> dict[str, int]`` says what happened so far, for reports (such as malformed verdicts of a judge). The optional attribute
    ``names`` names the columns of vectors.

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


class LabelsWanted(Exception):
    """An annotator has written what a person is to label; the annotation exists when the person has done it.

    Attributes:
      path: the file that says what is to be labelled.
      count: the number of labels that are wanted.
    """

    def __init__(self, path: str, count: int, message: str = "") -> None:
        super().__init__(message or f"{count} labels are wanted: fill in {path}")
        self.path, self.count = path, count


class FunctionAnnotator:
    """Scores of a user's own function (prompts, responses, references or None) -> one number per response, as a judge, or None."""

    kind = "scores"
    whole_file = False

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function

    def identity(self) -> Mapping[str, Any]:
        return {
            "function": f"{self._function.__module__}.{self.name}",
            "source": source_digest(self._function),
        }

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        prompts, texts = flat(candidates)
        given = list(self._function(prompts, texts, references_of(candidates)))
        scores = np.asarray(given, np.float64)
        if scores.shape != (len(texts),):
            raise UserError(
                f"annotator {self.name!r} gave an array of shape {list(scores.shape)} for {len(texts)} responses; "
                "it must give one number each"
            )
        # Only None says that there is no score; NaN is a mistake of the function.
        wrong = [i for i, score in enumerate(given) if score is not None and np.isnan(scores[i])]
        if wrong:
            raise UserError(
                f"annotator {self.name!r} gave nan for a response to the prompt {prompts[wrong[0]][:60]!r}; where there is no score, "
                "give None"
            )
        return split(scores, candidates)


_REGISTRY: Registry[Annotator] = Registry("annotator", FunctionAnnotator)
register_annotator = _REGISTRY.register


def annotator_names() -> list[str]:
    """Returns the names of the annotators, judges included."""
    _import_built_in()
    return sorted({*_REGISTRY.names(), *judges.judge_names()})


def get_annotator(spec: str, **overrides: Any) -> Annotator:
    """Returns the annotator of a specification, see `jaxalign.plugins`. Every judge is an annotator under its own name.

    Args:
      spec: such as `log_prob:policy=runs/a,per_token=true`, `slot_error`, or `module:function` for a function of one's own.
      **overrides: further arguments of the annotator.

    Raises:
      UserError: an unknown name or setting, or what the annotator itself refuses.
    """
    _import_built_in()
    name, _, argument = spec.partition(":")
    if name not in _REGISTRY and name in judges.judge_names():
        return JudgeAnnotator(spec)
    if name not in _REGISTRY and not argument:
        raise UserError(
            f"no annotator named {name!r}: use one of {', '.join(annotator_names())}, or module:function"
        )
    return _REGISTRY.build(spec, **overrides)


def _import_built_in() -> None:
    for module in _BUILT_IN:
        importlib.import_module(f"jaxalign.annotation.{module}")


def apply(annotator: Annotator, candidates: Candidates, name: str) -> Candidates:
    """Returns the candidates with the annotator's annotation under a name.

    Raises:
      UserError: the annotator gives arrays of another shape, or an infinite number.
    """
    values = [np.asarray(array, np.float64) for array in annotator.annotate(candidates)]
    names = tuple(getattr(annotator, "names", ()))
    for index, array in enumerate(values):
        if np.isinf(array).any():
            raise UserError(
                f"annotation {name!r}: infinite for the prompt {candidates.prompts[index][:60]!r}"
            )
    return candidates.with_annotation(name, Annotation(annotator.kind, values, names))
