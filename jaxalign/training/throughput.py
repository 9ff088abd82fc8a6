"""Counts the responses and tokens that a run trains on, in total and per second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Count(NamedTuple):
    """The numbers of responses and tokens of a batch. Padding, which packing removes, is not counted."""

    examples: int
    tokens: int

    @classmethod
    def of(cls, batch: Mapping[str, np.ndarray]) -> Count:
        """Counts the responses and non-padding tokens of a host batch."""
        tokens = (batch["encoder_segment_ids"] > 0).sum() + (batch["decoder_segment_ids"] > 0).sum()
        return cls(int((batch["response_mask"] > 0).sum()), int(tokens))


class Throughput:
    """A counter of responses and tokens, in total and per second of training, without compilation, evaluation and saving."""

    def __init__(self) -> None:
        self.examples = self.tokens = 0
        self._since: float | None = None
        self._seconds = 0.0
        self._counted = Count(0, 0)

    def add(self, count: Count) -> None:
        """Adds a finished step. The first step only starts the clock, because it includes compilation."""
        self.examples, self.tokens = self.examples + count.examples, self.tokens + count.tokens
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            examples, tokens = self._counted
            self._counted = Count(examples + count.examples, tokens + count.tokens)
        self.restart()

    def restart(self) -> None:
        """Excludes the time since the last `add`."""
        self._since = time.perf_counter()

    def report(self) -> dict[str, float]:
        """Returns the rates since the last call; none before the second step."""
        seconds, counted = self._seconds, self._counted
        self._seconds, self._counted = 0.0, Count(0, 0)
        if not counted.examples or seconds <= 0:
            return {}
        return {
            "examples_per_second": counted.examples / seconds,
            "tokens_per_second": counted.tokens / seconds,
        }
