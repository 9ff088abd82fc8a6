"""Selectors by a score: best against worst, all pairs, thresholds, best of n."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from jaxalign.data.candidates import Candidates
from jaxalign.data.records import Record
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.selection import from_feedback
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import (
    SMALL_MARGIN,
    TIE,
    kept_fields,
    pair_line,
    pair_measures,
    record_of,
    scores_of,
    usable_responses,
)

NOT_ABOVE = "response not above the threshold"
NOT_BEST = "response that is not the best"


@register_selector("best_worst")
@dataclasses.dataclass(frozen=True)
class BestWorst:
    """One pair per prompt: the first of the best responses against the first of the worst. The margin is the difference of their scores.

    Attributes:
      annotation: the scores; of preferences, the mean probability of being preferred is taken.
      min_margin: pairs with a smaller margin are left out.
    """

    annotation: str = "judge"
    min_margin: float = 0.0

    def __post_init__(self) -> None:
        require_range("best_worst", "[0, inf)", min_margin=self.min_margin)

    def __call__(self, candidates: Candidates) -> Selection:
        return _pairs(candidates, self.annotation, self.min_margin, "best_worst")


@register_selector("all_pairs")
@dataclasses.dataclass(frozen=True)
class AllPairs:
    """All pairs of a prompt's responses whose scores differ, the better response first.

    Attributes:
      annotation: the scores; of preferences, the mean probability of being preferred is taken.
      min_margin: pairs with a smaller margin are left out.
    """

    annotation: str = "judge"
    min_margin: float = 0.0

    def __post_init__(self) -> None:
        require_range("all_pairs", "[0, inf)", min_margin=self.min_margin)

    def __call__(self, candidates: Candidates) -> Selection:
        return _pairs(candidates, self.annotation, self.min_margin, "all")


@register_selector("threshold")
@dataclasses.dataclass(frozen=True)
class Threshold:
    """The responses whose score exceeds a threshold, for filtered SFT; or thumbs up and down for all responses.

    Attributes:
      annotation: the scores.
      threshold: responses with a greater score are kept.
      quantile: instead, the share of all responses with the lowest scores, which are left out with those that tie with them.
      records: 'seq2seq' keeps the responses above the threshold; 'triplet' keeps all, with feedback 1 above it and 0 otherwise.
    """

    annotation: str = "judge"
    threshold: float | None = None
    quantile: float | None = None
    records: str = "seq2seq"

    def __post_init__(self) -> None:
        require_one_of("threshold", ("seq2seq", "triplet"), records=self.records)
        require_range("threshold", "[0, 1]", quantile=self.quantile)
        if (self.threshold is None) == (self.quantile is None):
            raise UserError("selector 'threshold' needs one of threshold=... and quantile=...")

    def __call__(self, candidates: Candidates) -> Selection:
        dropped: Counter[str] = Counter()
        records = [
            record
            for group in _groups(candidates, self.annotation, dropped, minimum=1)
            for record in _single(group)
        ]
        kept = {
            (record.line, record.responses[0])
            for record in from_feedback.filter_by_feedback(
                records, threshold=self.threshold, quantile=self.quantile
            )
        }
        if self.records == "seq2seq":
            dropped[NOT_ABOVE] += len(records) - len(kept)
        lines = []
        for record in records:
            above = (record.line, record.responses[0]) in kept
            line = _response_line(candidates, record)
            if self.records == "triplet":
                lines.append({**line, "feedback": float(above)})
            elif above:
                lines.append(line)
        share = len(kept) / len(records) if records else 0.0
        return Selection(lines, self.records, +dropped, {"above_threshold": share})


@register_selector("best_of_n")
@dataclasses.dataclass(frozen=True)
class BestOfN:
    """The response with the highest score to every prompt, for SFT. The first response wins a tie.

    Attributes:
      annotation: the scores.
      n: the number of responses that compete, the first of each prompt, repeated ones included; 0 for all.
    """

    annotation: str = "judge"
    n: int = 0

    def __post_init__(self) -> None:
        require_range("best_of_n", "[0, inf)", n=self.n)

    def __call__(self, candidates: Candidates) -> Selection:
        dropped: Counter[str] = Counter()
        lines, best = [], []
        scores = scores_of(candidates, self.annotation)
        for index, kept in enumerate(usable_responses(candidates, dropped, scores, minimum=1)):
            # A repeated response counts as a sample: without it, n would be more samples than the user asked for.
            competing = [k for k in kept if not self.n or k < self.n]
            dropped[NOT_BEST] += len(kept) - bool(competing)
            if not competing:
                continue
            record = record_of(candidates, index, competing, scores[index])
            assert record.feedback is not None
            (chosen,) = from_feedback.best_of_n([record])
            best.append(max(record.feedback))
            lines.append(_response_line(candidates, chosen))
        measures = {"mean_score": sum(best) / len(best)} if best else {}
        return Selection(lines, "seq2seq", +dropped, measures)


def _groups(
    candidates: Candidates, annotation: str, dropped: Counter[str], *, minimum: int
) -> list[Record]:
    """Returns one record per prompt that has enough usable responses."""
    scores = scores_of(candidates, annotation)
    usable = usable_responses(candidates, dropped, scores, minimum=minimum)
    return [
        record_of(candidates, index, kept, scores[index])
        for index, kept in enumerate(usable)
        if kept
    ]


def _single(record: Record) -> list[Record]:
    """Returns a record for every response."""
    assert record.feedback is not None
    return [
        dataclasses.replace(record, responses=(response,), feedback=(feedback,))
        for response, feedback in zip(record.responses, record.feedback, strict=True)
    ]


def _response_line(candidates: Candidates, record: Record) -> dict[str, Any]:
    return {
        **kept_fields(candidates, record.line),
        "prompt": record.prompt,
        "response": record.responses[0],
    }


def _pairs(candidates: Candidates, annotation: str, min_margin: float, mode: str) -> Selection:
    dropped: Counter[str] = Counter()
    lines = []
    for group in _groups(candidates, annotation, dropped, minimum=2):
        possible = 1 if mode == "best_worst" else _number_of_pairs(len(group.responses))
        # One prompt at a time, so that a prompt that occurs on two lines stays two groups.
        pairs = from_feedback.pairs_from_groups([group], mode=mode)
        dropped[TIE] += possible - len(pairs)
        for pair in pairs:
            assert pair.feedback is not None
            margin = pair.feedback[0]
            if margin < min_margin:
                dropped[SMALL_MARGIN] += 1
                continue
            lines.append(pair_line(candidates, group.line, *pair.responses, margin=margin))
    return Selection(lines, "pair", +dropped, pair_measures(lines))


def _number_of_pairs(responses: int) -> int:
    return responses * (responses - 1) // 2
