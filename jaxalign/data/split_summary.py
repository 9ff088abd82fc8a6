"""The statistics of a split, gathered while it is written. The numbers wait in temporary files, and are read one list at a time."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from jaxalign.data.digests import Places
from jaxalign.data.examples import CachedExample
from jaxalign.data.number_file import NumberFile

# Feedback is an outlier if it is farther from the median than this many times the range of the middle 90 % of the responses.
_OUTLIER = 100.0
_PERCENTS = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


class SplitSummary:
    """The statistics of a split.

    Args:
      folder: the folder of the temporary files; the machine's own by default.

    Attributes:
      prompts: the distinct prompts.
      examples: the number of examples.
      fields: the optional fields that every example has.
      responses: the largest number of responses of an example.
      reference_samples: the number of reference samples of an example.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.prompts = Places(folder)
        self.examples = 0
        self.fields: set[str] = {"feedback", "scores", "reference_feedback"}
        self.responses = 0
        self.reference_samples = 0
        self._example_lengths = NumberFile("<i4", folder)
        self._response_lengths = NumberFile("<i4", folder)
        self._feedback = NumberFile("<f4", folder)
        self._first_feedback = NumberFile("<f4", folder)

    def add(self, example: CachedExample) -> None:
        """Adds an example."""
        self.examples += 1
        self.prompts.note(example.prompt_key, example.file, example.line)
        lengths = example.target_lengths.tolist()
        self._example_lengths.extend((len(example.inputs), len(example.targets)))
        self._response_lengths.extend(lengths)
        self.responses = max(self.responses, len(lengths))
        if example.feedback is None:
            self.fields.discard("feedback")
        else:
            feedback = example.feedback.tolist()
            self._feedback.extend(feedback)
            self._first_feedback.extend(feedback[:1])
        if example.scores is None:
            self.fields.discard("scores")
        if example.reference_feedback is None:
            self.fields.discard("reference_feedback")
        else:
            self.reference_samples = len(example.reference_feedback)

    @property
    def num_responses(self) -> int:
        """The number of responses of all examples."""
        return len(self._response_lengths)

    def write_lengths(self, file: BinaryIO) -> None:
        """Writes the lengths of prompt and decoder of every example, int32 [examples, 2], as a `.npy` file."""
        np.save(file, self._example_lengths.read().reshape(-1, 2), allow_pickle=False)

    def feedback_statistics(self) -> dict[str, float] | None:
        """Returns the mean and (population) standard deviation over responses; the deviation is 1 if all feedback is equal."""
        if "feedback" not in self.fields:
            return None
        values = self._feedback.read().astype(np.float64)
        std = float(values.std())
        return {"mean": float(values.mean()), "std": std if std > 1e-12 else 1.0}

    def feedback_ranges(self) -> dict[str, dict[str, float]]:
        """Returns the minimum and maximum feedback of all responses and of the first ones; nothing without feedback."""
        if "feedback" not in self.fields:
            return {}
        named = {"feedback": self._feedback.read(), "chosen_feedback": self._first_feedback.read()}
        return {
            name: {"min": float(found.min()), "max": float(found.max())}
            for name, found in named.items()
        }

    def feedback_outliers(self) -> int:
        """Counts the responses whose feedback is so far from the others that it alone determines the scale of standardised rewards."""
        if "feedback" not in self.fields:
            return 0
        values = self._feedback.read().astype(np.float64)
        low, median, high = np.percentile(values, (5, 50, 95))
        spread = max(high - low, 1e-3 * max(abs(median), 1.0))
        return int(np.sum(np.abs(values - median) > _OUTLIER * spread))

    def lengths(self) -> dict[str, dict[str, float]]:
        """Returns the mean and percentiles of the tokens of prompts and of responses."""
        return {
            "prompt": _statistics(self._example_lengths.read()[::2]),
            "response": _statistics(self._response_lengths.read()),
        }


def _statistics(lengths: np.ndarray) -> dict[str, float]:
    percentiles = np.percentile(lengths, [*_PERCENTS.values()])
    found = dict(zip(_PERCENTS, map(float, percentiles), strict=True))
    return {"mean": float(np.mean(lengths)), **found}
