"""The description of a cache folder: the content of `metadata.json` as typed objects."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxalign.data import cache_report
from jaxalign.data.encoding import CUT_FLAGS, describe_cut
from jaxalign.data.images import ImageFormat
from jaxalign.data.rejections import DataError
from jaxalign.data.tokenization import Limits

METADATA_FILE = "metadata.json"
REJECTED_FILE = "rejected.jsonl"
# Version 2: stored arrays are in `stored/` and have checksums, and each split has its own description.
VERSION = 2

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The minimum and the maximum of some numbers."""

    min: float
    max: float


@dataclasses.dataclass(frozen=True)
class RewardStatistics:
    """Mean and population standard deviation of the feedback of the training split's responses."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class LengthStatistics:
    """The mean and percentiles of lengths in tokens, including EOS."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclasses.dataclass(frozen=True)
class SplitMetadata:
    """The description of one split.

    Attributes:
      num_examples, num_prompts, num_responses: the number of examples, of distinct prompts, and of responses.
      num_read: the number of records read, good and bad.
      prompt_lengths, response_lengths: statistics in tokens.
      feedback_range, chosen_feedback_range: ranges of the feedback of all responses and of the first responses; None without
        feedback.
      feedback_outliers: the number of responses whose feedback alone determines the scale of standardised rewards.
      rejected: the number of rejected records by reason.
      notes: other counts, such as truncated_prompts, or without_margin of pairs (`tokenization.make_examples`).
      lengths_sha256: the sha256 of the content of the file with the lengths of all examples.
    """

    num_examples: int
    num_prompts: int
    num_responses: int
    num_read: int
    prompt_lengths: LengthStatistics
    response_lengths: LengthStatistics
    feedback_range: Range | None
    chosen_feedback_range: Range | None
    rejected: Mapping[str, int]
    notes: Mapping[str, int]
    lengths_sha256: str
    feedback_outliers: int = 0


@dataclasses.dataclass(frozen=True)
class CacheMetadata:
    """The content of a cache and how it was made.

    Attributes:
      name: the name of the task.
      kind: the kind of its records.
      limits: the limits that records had to meet, and how long prompts were cut.
      vocabulary: the description of the vocabulary, with its path inside the cache.
      splits: the splits by name, in the order in which they were written.
      responses_per_example: K, the largest number of responses of an example.
      fields: those of feedback, scores and reference_feedback that all examples have, sorted.
      reference_samples: the number of values in an example's reference_feedback.
      score_names: the names of the scores, in their order.
      reward_statistics: the statistics of the training split; None without feedback or without that split.
      request: a hash of the options and the source's content; None if the source's content has no hash.
      fingerprint: a hash of the examples.
      images: the format of the images of prompts; None if images were not read.
      chat_template: what turned chat messages into text (`ChatTemplate.describe`); None for lines `role: content`.
    """

    name: str
    kind: str
    limits: Limits
    vocabulary: Mapping[str, Any]
    splits: Mapping[str, SplitMetadata]
    responses_per_example: int
    fields: tuple[str, ...]
    reference_samples: int
    score_names: tuple[str, ...]
    reward_statistics: RewardStatistics | None
    request: str | None
    fingerprint: str
    images: ImageFormat | None = None
    chat_template: Mapping[str, Any] | None = None

    @property
    def num_examples(self) -> dict[str, int]:
        """The number of examples by split."""
        return {name: split.num_examples for name, split in self.splits.items()}

    @property
    def rejected(self) -> dict[str, dict[str, int]]:
        """The number of rejected records by split and reason."""
        return {name: dict(split.rejected) for name, split in self.splits.items()}

    @property
    def cut_fraction(self) -> float:
        """The share of the prompts that were cut to `limits.max_input_length`."""
        return self.noted("truncated_prompts") / max(sum(self.num_examples.values()), 1)

    def rejected_because(self, reason: str) -> int:
        """Returns the number of records of all splits that were rejected for a reason."""
        return sum(split.rejected.get(reason, 0) for split in self.splits.values())

    def noted(self, note: str) -> int:
        """Returns a count of `SplitMetadata.notes`, summed over all splits."""
        return sum(split.notes.get(note, 0) for split in self.splits.values())

    @property
    def report(self) -> str:
        """The text that `jaxalign cache` prints."""
        return "\n".join(cache_report.lines(self, CUT_FLAGS))

    def describe_cut(self, remedy: str) -> str:
        """Returns one sentence about the prompts that were cut, or '' if none was; `remedy` names the option that changes it."""
        total = sum(self.num_examples.values())
        return describe_cut(self.noted("truncated_prompts"), total, self.limits, remedy)

    def write(self, folder: str) -> None:
        """Writes `metadata.json`."""
        described = {"version": VERSION, **dataclasses.asdict(self)}
        # Most caches have neither, and their files do not mention them.
        for name in ("images", "chat_template"):
            if described[name] is None:
                del described[name]
        with open(os.path.join(folder, METADATA_FILE), "w", encoding="utf-8") as file:
            json.dump(described, file, indent=2, ensure_ascii=False)
            file.write("\n")

    @classmethod
    def read(cls, folder: str) -> CacheMetadata:
        """Reads `metadata.json` of a cache folder.

        Raises:
          DataError: the file is missing or damaged, or another version of the package wrote it.
        """
        path = os.path.join(folder, METADATA_FILE)
        found = read_json_object(
            path,
            missing=f"{folder} is not a cache: it has no {METADATA_FILE}. Make one with `jaxalign cache`.",
            advice="make the cache again",
        )
        if found.get("version") != VERSION:
            raise DataError(
                f"{folder} was made by another version of jaxalign (its format is {found.get('version')!r}, this one reads {VERSION}); "
                "delete it and make it again with `jaxalign cache`."
            )
        try:
            return _parse(found)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{path} is damaged ({what}); delete the folder and make the cache again."
            ) from None


def read_json_object(path: str, *, missing: str, advice: str) -> dict[str, Any]:
    """Returns the JSON object in a small file of a cache; raises DataError with one of the two texts if missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        raise DataError(missing) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); {advice}.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object; {advice}.")
    return found


def _parse(found: Mapping[str, Any]) -> CacheMetadata:
    statistics, request = found["reward_statistics"], found["request"]
    splits = {name: _split(split) for name, split in _mapping(found["splits"], "splits").items()}
    if not splits:
        raise ValueError("it describes no split")
    return CacheMetadata(
        name=_text(found["name"], "name"),
        kind=_text(found["kind"], "kind"),
        limits=_limits(found["limits"]),
        vocabulary=_mapping(found["vocabulary"], "vocabulary"),
        splits=splits,
        responses_per_example=_count(found["responses_per_example"], "responses_per_example", 1),
        fields=_texts(found["fields"], "fields"),
        reference_samples=_count(found["reference_samples"], "reference_samples"),
        score_names=_texts(found["score_names"], "score_names"),
        reward_statistics=None if statistics is None else _statistics(statistics),
        request=None if request is None else _text(request, "request"),
        fingerprint=_text(found["fingerprint"], "fingerprint"),
        images=_images(found["images"]) if "images" in found else None,
        chat_template=_mapping(found["chat_template"], "chat_template")
        if "chat_template" in found
        else None,
    )


def _split(found: Any) -> SplitMetadata:
    found = _mapping(found, "a split")
    counts = ("num_examples", "num_prompts", "num_responses", "num_read")
    return SplitMetadata(
        **{name: _count(found[name], name) for name in counts},
        prompt_lengths=_numbers(LengthStatistics, found["prompt_lengths"]),
        response_lengths=_numbers(LengthStatistics, found["response_lengths"]),
        feedback_range=_optional_range(found["feedback_range"]),
        chosen_feedback_range=_optional_range(found["chosen_feedback_range"]),
        feedback_outliers=_count(found["feedback_outliers"], "feedback_outliers"),
        rejected=_counts(found["rejected"], "rejected"),
        notes=_counts(found["notes"], "notes"),
        lengths_sha256=_text(found["lengths_sha256"], "lengths_sha256"),
    )


def _limits(found: Any) -> Limits:
    found = _mapping(found, "limits")
    unknown = found["max_unknown_fraction"]
    if isinstance(unknown, bool) or not isinstance(unknown, (int, float)):
        raise ValueError(f"limits.max_unknown_fraction is {unknown!r}, not a number")
    return Limits(
        max_input_length=_count(found["max_input_length"], "limits.max_input_length", 2),
        max_target_length=_count(found["max_target_length"], "limits.max_target_length", 2),
        long_prompts=_text(found["long_prompts"], "limits.long_prompts"),
        max_unknown_fraction=unknown,
        duplicates=_text(found["duplicates"], "limits.duplicates"),
    )


def _images(found: Any) -> ImageFormat:
    found = _mapping(found, "images")
    return ImageFormat(
        _count(found["image_size"], "images.image_size", 1),
        _count(found["patch_size"], "images.patch_size", 1),
    )


def _statistics(found: Any) -> RewardStatistics:
    statistics = _numbers(RewardStatistics, found)
    if statistics.std <= 0:
        raise ValueError(f"reward_statistics has the deviation {statistics.std}")
    return statistics


def _optional_range(found: Any) -> Range | None:
    return None if found is None else _numbers(Range, found)


def _numbers(build: Callable[..., _T], found: Any) -> _T:
    values = {}
    for name, value in _mapping(found, build.__name__).items():
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise ValueError(f"{build.__name__}.{name} is {value!r}, not a finite number")
        values[name] = float(value)
    return build(**values)


def _counts(found: Any, name: str) -> dict[str, int]:
    return {key: _count(value, f"{name}.{key}") for key, value in _mapping(found, name).items()}


def _count(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, not a count of at least {least}")
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, not text")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return tuple(_text(item, name) for item in value)
