"""The statistics of a split, gathered while it is written. Memory does not grow with the split: numbers are spilled to files."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from jaxalign.data.digests import Places
from jaxalign.data.examples import CachedExample
from jaxalign.data.spilled_numbers import SpilledNumbers, counted, counted_mean, counted_percentiles

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
        self._example_lengths = SpilledNumbers("<i4", folder)
        self._response_lengths = SpilledNumbers("<i4", folder)
        self._feedback = SpilledNumbers("<f4", folder)
        self._first_feedback = SpilledNumbers("<f4", folder)

    def add(self, example: CachedExample) -> None:
        """Adds an example."""
        self.examples += 1
        self.prompts.note(example.prompt, example.file, example.line)
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
        header = {"descr": "<i4", "fortran_order": False, "shape": (self.examples, 2)}
        np.lib.format.write_array_header_1_0(file, header)
        self._example_lengths.write_to(file)

    def feedback_statistics(self) -> dict[str, float] | None:
        """Returns the mean and (population) standard deviation over responses; the deviation is 1 if all feedback is equal."""
        if "feedback" not in self.fields:
            return None
        std = self._feedback.std()
        return {"mean": self._feedback.mean(), "std": std if std > 1e-12 else 1.0}

    def feedback_ranges(self) -> dict[str, dict[str, float]]:
        """Returns the minimum and maximum feedback of all responses and of the first ones; nothing without feedback."""
        if "feedback" not in self.fields:
            return {}
        named = {"feedback": self._feedback, "chosen_feedback": self._first_feedback}
        return {
            name: {
                "min": min(float(chunk.min()) for chunk in numbers.chunks()),
                "max": max(float(chunk.max()) for chunk in numbers.chunks()),
            }
            for name, numbers in named.items()
        }

    def feedback_outliers(self) -> int:
        """Counts the responses whose feedback is so far from the others that it alone determines the scale of standardised rewards."""
        if "feedback" not in self.fields:
            return 0
        low, median, high = self._feedback.percentiles((5, 50, 95))
        spread = max(high - low, 1e-3 * max(abs(median), 1.0))
        return sum(
            int(np.sum(np.abs(chunk.astype(np.float64) - median) > _OUTLIER * spread))
            for chunk in self._feedback.chunks()
        )

    def lengths(self) -> dict[str, dict[str, float]]:
        """Returns the mean and percentiles of the tokens of prompts and of responses."""
        named = {
            # Lengths of prompts and decoders take turns.
            "prompt": counted(chunk[::2] for chunk in self._example_lengths.chunks()),
            "response": counted(self._response_lengths.chunks()),
        }
        percents = [*_PERCENTS.values()]
        return {
            name: {"mean": counted_mean(counts)}
            | dict(zip(_PERCENTS, counted_percentiles(counts, percents), strict=True))
            for name, counts in named.items()
        }
