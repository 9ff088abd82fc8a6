"""UltraFeedback: converts the layout of its Hugging Face and TFDS releases to triplets or multi-score records.

One object holds an instruction and several completions, each with four rated aspects. The paper of DRO does not say which
number is the reward (`reward_field`). Release 1 gave `overall_score` 10 to completions that deserved 1, so the default is
the mean of the aspects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxalign.data.record_fields import RecordError
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError

ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
REWARD_FIELDS = ("mean_aspects", "overall_score", "fine-grained_score", *ASPECTS)
# Sources with questions of a benchmark on which models are evaluated.
CONTAMINATED_SOURCES = ("truthful_qa",)


@dataclasses.dataclass(frozen=True)
class UltraFeedbackParser:
    """Converts one UltraFeedback object to records.

    Attributes:
      kind: "triplet", or "multi" with the four aspects as scores.
      reward_field: the feedback: "mean_aspects", "overall_score", "fine-grained_score" or one aspect.
      drop_sources: the values of `source` to leave out (counted in the cache's metadata as `dropped_<source>`).
    """

    kind: str = "triplet"
    reward_field: str = "mean_aspects"
    drop_sources: Sequence[str] = CONTAMINATED_SOURCES

    def __post_init__(self) -> None:
        if self.reward_field not in REWARD_FIELDS:
            raise DataError(
                f"Unknown reward_field {self.reward_field!r}; known: {', '.join(REWARD_FIELDS)}."
            )
        if self.kind not in ("triplet", "multi"):
            raise DataError(f"UltraFeedback gives kinds 'triplet' and 'multi', not {self.kind!r}.")

    def __call__(
        self,
        obj: Any,
        *,
        file: str,
        line: int,
        reject: Callable[[str, str], None],
        note: Callable[[str], None],
    ) -> list[Record]:
        """Returns the records of the object's completions; a completion that cannot be used goes to `reject`.

        Raises:
          RecordError: the object itself cannot be used.
        """
        if not isinstance(obj, Mapping):
            raise RecordError("wrong_type", "the line does not hold an object")
        prompt = obj.get("instruction")
        if prompt is None:
            raise RecordError("missing_field", "the field 'instruction' is missing")
        if not isinstance(prompt, str):
            raise RecordError("wrong_type", "'instruction' is not a string")
        if not prompt.strip():
            raise RecordError("empty_prompt", "the instruction is empty")
        source = str(obj.get("source", "ultrafeedback"))
        if source in self.drop_sources:
            note(f"dropped_{source}")
            return []
        records = []
        for number, completion in enumerate(rows_of(obj.get("completions"))):
            try:
                response, feedback, scores = self._completion(completion)
            except RecordError as error:
                reject(error.reason, f"completion {number}: {error}")
                continue
            records.append(
                Record(
                    prompt,
                    (response,),
                    (feedback,),
                    scores=(scores,) if self.kind == "multi" else None,
                    source=source,
                    file=file,
                    line=line,
                )
            )
        return records

    def _completion(self, completion: Any) -> tuple[str, float, tuple[float, ...]]:
        if not isinstance(completion, Mapping):
            raise RecordError("wrong_type", "not an object")
        response = completion.get("response")
        if not isinstance(response, str):
            raise RecordError("missing_field", "the field 'response' is missing or not a string")
        if not response.strip():
            raise RecordError("empty_response", "the response is empty")
        by_aspect = self.reward_field == "mean_aspects" or self.kind == "multi"
        wanted = ASPECTS if by_aspect else [a for a in ASPECTS if a == self.reward_field]
        annotations = completion.get("annotations")
        ratings = {aspect: _rating(annotations, aspect) for aspect in wanted}
        if self.reward_field == "mean_aspects":
            feedback = sum(ratings.values()) / len(ratings)
        elif self.reward_field in ratings:
            feedback = ratings[self.reward_field]
        else:
            feedback = _number(completion.get(self.reward_field), self.reward_field)
        return response, feedback, tuple(ratings.get(aspect, 0.0) for aspect in ASPECTS)


def rows_of(value: Any) -> list[Any]:
    """Returns a list of objects, from the list itself or from an object of equally long lists (as in columnar releases)."""
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        columns = {
            key: rows_of(column) if isinstance(column, Mapping) else column
            for key, column in value.items()
        }
        lengths = {len(column) for column in columns.values() if isinstance(column, list)}
        if len(lengths) == 1 and all(isinstance(column, list) for column in columns.values()):
            (length,) = lengths
            return [{key: column[i] for key, column in columns.items()} for i in range(length)]
        # An object of single values inside a columnar list is one row.
        if not lengths:
            return [dict(value)]
    raise RecordError("wrong_type", "'completions' is neither a list nor an object of equal lists")


def _rating(annotations: Any, aspect: str) -> float:
    annotation = annotations.get(aspect) if isinstance(annotations, Mapping) else None
    if isinstance(annotation, list):
        annotation = annotation[0] if len(annotation) == 1 else None
    if not isinstance(annotation, Mapping):
        raise RecordError("missing_rating", f"no annotation of {aspect}")
    return _number(annotation.get("Rating"), aspect)


def _number(value: Any, name: str) -> float:
    """Returns a rating as a number; ratings are strings such as "4", and "N/A" if the annotator gave none."""
    if value is None or isinstance(value, bool):
        raise RecordError("missing_rating", f"no rating of {name}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RecordError("missing_rating", f"the rating of {name} is {value!r}") from None
    if not math.isfinite(number):
        raise RecordError("nonfinite_feedback", f"the rating of {name} is {number}")
    return number
