"""Measures how far judges agree with people: each judge scores logged responses, whose feedback is known, beside those of the policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.annotation import judges as judging
from jaxalign.data.evaluation_set import EvaluationSet, FeedbackRecord
from jaxalign.data.records import prompt_key
from jaxalign.evaluation.ranking import rank_responses


def judge_agreement(
    panel: Sequence[judging.Judge],
    data: EvaluationSet,
    count: int,
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Returns by judge how well its scores order logged responses by their feedback: `evaluation.ranking.Ranking` as JSON.

    Args:
      panel: the judges.
      data: the logged responses, with the references of their prompts.
      count: about how many of them are judged, the first ones; the responses to one prompt stay together.
      bootstrap: the number of resamples for intervals.
      seed: the seed of the bootstrap.

    Returns:
      An empty dictionary without feedback or judges.

    Raises:
      UserError: a judge fails.
    """
    records = _first(data.feedback, count)
    if not records:
        return {}
    keys = map(prompt_key, data.prompts, data.images)
    by_prompt = dict(zip(keys, data.references, strict=True))
    prompts = [record.prompt for record in records]
    responses = [record.response for record in records]
    references = [by_prompt[record.prompt_key] for record in records]
    feedback = np.array([record.feedback for record in records])
    found = {}
    for judge in panel:
        scores = judging.checked_scores(judge, prompts, responses, references)
        agreement = rank_responses(
            scores, feedback, [each.prompt_key for each in records], bootstrap=bootstrap, seed=seed
        )
        found[judge.name] = agreement.to_dict()
    return found


def _first(records: Sequence[FeedbackRecord], count: int) -> list[FeedbackRecord]:
    """Returns the records of the first prompts, until there are `count` of them."""
    kept: set[str] = set()
    number = 0
    of_prompt: dict[str, int] = {}
    for record in records:
        of_prompt[record.prompt_key] = of_prompt.get(record.prompt_key, 0) + 1
    for key, size in of_prompt.items():
        if number >= count:
            break
        kept.add(key)
        number += size
    return [record for record in records if record.prompt_key in kept]
