"""What all selectors share: which responses can be selected, counts of those that cannot, and numbers that describe a selection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data.candidates import Candidates
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError

# Reasons for leaving something out.
EMPTY = "empty response"
DUPLICATE = "duplicate response"
MISSING = "response without annotation"
TOO_FEW = "prompt with too few responses"
TIE = "tie"
SMALL_MARGIN = "margin below min_margin"

_KEPT_FIELDS = ("id", "group", "image")


def scores_of(candidates: Candidates, name: str) -> Sequence[Float[np.ndarray, " responses"]]:
    """Returns one number per response: the annotation's scores, or the mean probability of being preferred.

    The mean is over the other responses whose comparison is known.

    Raises:
      DataError: there is no such annotation, or it holds vectors.
    """
    annotation = candidates.annotation(name)
    if annotation.kind == "vectors":
        raise DataError(
            f"{candidates.path}: the annotation {name!r} holds vectors; scores or preferences are needed"
        )
    if annotation.kind == "scores":
        return annotation.values
    return [_win_rates(preferences) for preferences in annotation.values]


def usable_responses(
    candidates: Candidates,
    dropped: Counter[str],
    values: Sequence[np.ndarray] | None = None,
    *,
    minimum: int = 2,
) -> list[list[int]]:
    """Returns, for every prompt, the indices of the responses that can be selected; none if these are too few.

    A response is left out if it is empty, repeats an earlier response to its prompt (up to white space at the ends), or has no value.

    Args:
      candidates: the candidates.
      dropped: receives the counts by reason.
      values: numbers of every response; a response with NaN among its numbers is left out.
      minimum: the number of responses that a prompt needs.
    """
    found = []
    for index, texts in enumerate(candidates.responses):
        seen: set[str] = set()
        kept = []
        for k, text in enumerate(texts):
            plain = text.strip()
            if not plain:
                dropped[EMPTY] += 1
            elif plain in seen:
                dropped[DUPLICATE] += 1
            elif values is not None and not np.isfinite(values[index][k]).all():
                dropped[MISSING] += 1
            else:
                seen.add(plain)
                kept.append(k)
        if len(kept) < minimum:
            dropped[TOO_FEW] += 1
            kept = []
        found.append(kept)
    return found


def record_of(
    candidates: Candidates, index: int, kept: Sequence[int], scores: np.ndarray
) -> Record:
    """Returns the usable responses to a prompt and their scores as one record, whose line is the prompt's index."""
    return Record(
        candidates.prompts[index],
        tuple(candidates.responses[index][k] for k in kept),
        tuple(float(scores[k]) for k in kept),
        file=candidates.path,
        line=index,
    )


def kept_fields(candidates: Candidates, index: int) -> dict[str, Any]:
    """Returns the fields of a line of candidates that its records keep: `id`, `group` and `image`."""
    fields = candidates.fields[index]
    return {name: fields[name] for name in _KEPT_FIELDS if fields.get(name) is not None}


def pair_line(
    candidates: Candidates, index: int, chosen: str, rejected: str, **more: Any
) -> dict[str, Any]:
    """Returns the JSON object of a pair."""
    return {
        **kept_fields(candidates, index),
        "prompt": candidates.prompts[index],
        "chosen": chosen,
        "rejected": rejected,
        **more,
    }


def pair_measures(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the number of prompts with pairs, the mean margin, and lengths in characters: the bias that a judge often has."""
    if not lines:
        return {}
    lengths = np.array([[len(line["chosen"]), len(line["rejected"])] for line in lines])
    measures = {
        "prompts": float(len({line["prompt"] for line in lines})),
        "chosen_characters": float(lengths[:, 0].mean()),
        "rejected_characters": float(lengths[:, 1].mean()),
        "chosen_is_longer": float((lengths[:, 0] > lengths[:, 1]).mean()),
    }
    margins = [line["margin"] for line in lines if "margin" in line]
    if margins:
        measures["mean_margin"] = float(np.mean(margins))
    return measures


def _win_rates(
    preferences: Float[np.ndarray, "responses responses"],
) -> Float[np.ndarray, " responses"]:
    others = ~np.eye(len(preferences), dtype=bool) & np.isfinite(preferences)
    counts = others.sum(axis=1)
    sums = np.where(others, preferences, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
