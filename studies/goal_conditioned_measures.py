"""Measures of the study of goal-conditioned reward models: pairs, prefixes of solutions, and votes among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.annotation.answers import get_answer_extractor
from jaxalign.annotation.prefixes import (
    PrefixScores,
    lowest_scores,
    score_prefixes,
    threshold_that_drops,
)
from jaxalign.annotation.reward_judges import judging_encoder
from jaxalign.annotation.voting import filtered_vote
from jaxalign.evaluation.statistics import area_under_curve, pearson, win_points
from jaxalign.inference.goals import goal_vector
from jaxalign.inference.rows import predict_rewards
from jaxalign.losses.goal_conditioning import prefix_filter
from jaxalign.runs.folder import Run

SHARES = (0.25, 0.5, 0.75, 1.0)
# Shares of the solutions that a filter drops.
DROPPED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
IGNORED_TOKENS = 5
SCORERS = ("q", "reward")
SIDES = ("chosen", "rejected")
_BATCH = 64


def measure_pairs(run: Path, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Measures how often the reward prefers the chosen response; `longer` is the baseline that prefers more characters."""
    opened = Run(run).reward()
    encoder = judging_encoder(opened)
    prompts = encoder.prompts([row["prompt"] for row in rows]).tokens
    sides = []
    for name in SIDES:
        answers = encoder.responses([row[name] for row in rows]).tokens
        sides.append(
            predict_rewards(opened.network, opened.params, prompts, answers, batch_size=_BATCH)
        )
    lengths = [np.array([float(len(row[name])) for row in rows]) for name in SIDES]
    margins = sides[0] - sides[1]
    return {
        "accuracy": float(win_points(*sides).mean()),
        "longer": float(win_points(*lengths).mean()),
        "length_correlation": pearson(margins, lengths[0] - lengths[1]),
    }


def measure_solutions(
    run: Path, pairs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Measures prefixes of solutions and votes among the solutions to a question.

    Args:
      run: the reward model's run.
      pairs: its training pairs, whose chosen solutions make the goal.
      rows: solutions with feedback 1 or 0.
    """
    opened = Run(run).reward()
    encoder = judging_encoder(opened)
    network = (opened.network, opened.params)
    goal = goal_vector(
        *network,
        encoder.prompts([row["prompt"] for row in pairs]).tokens,
        encoder.responses([row["chosen"] for row in pairs]).tokens,
        batch_size=_BATCH,
    )
    scores = score_prefixes(
        *network,
        goal,
        encoder.prompts([row["prompt"] for row in rows]).tokens,
        encoder.responses([row["response"] for row in rows]).tokens,
        batch_size=_BATCH,
    )
    right = np.array([row["feedback"] > 0.5 for row in rows])
    lengths = np.array([float(len(row["response"])) for row in rows])
    return {
        "auroc": {name: aurocs(_of(scores, name), scores.mask, right) for name in SCORERS},
        "auroc_shorter": area_under_curve(-lengths, right),
        "q_and_reward": pearson(
            *(at_share(_of(scores, name), scores.mask, 1.0) for name in SCORERS)
        ),
        "q_below_0": float((scores.values[scores.mask] < 0).mean()),
        "votes": votes(scores, rows, right),
    }


def at_share(values: np.ndarray, mask: np.ndarray, share: float) -> np.ndarray:
    """Returns the score of the prefix with a share of each response's tokens; 1 is all of them except EOS."""
    last = mask.sum(axis=1) - 1
    return values[np.arange(len(values)), np.rint(share * last).astype(int)].astype(np.float64)


def aurocs(values: np.ndarray, mask: np.ndarray, right: np.ndarray) -> list[float]:
    """Returns the area under the ROC curve, right against wrong, at each of `SHARES`."""
    return [area_under_curve(at_share(values, mask, share), right) for share in SHARES]


def votes(
    scores: PrefixScores, rows: Sequence[dict[str, Any]], right: np.ndarray
) -> dict[str, Any]:
    """Returns accuracies of votes, and of filtered votes with the share of tokens that they read.

    A filter's threshold is set so that it drops a given share of all solutions, which makes Q and reward head comparable; `q_at_0` has the
    public code's threshold. Where all solutions to a question are dropped, all of them are read and vote. `fewer` are majority
    votes of one to four solutions drawn at random.
    """
    extract = get_answer_extractor("last_number")
    answers = np.array([extract(row["response"]) for row in rows], object)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row["prompt"], []).append(index)
    questions = [np.array(group) for group in groups.values()]
    truths = [{answers[i] for i in group if right[i]} for group in questions]
    tokens = scores.mask.sum(axis=1)
    everything = np.ones(len(rows), bool)

    def accuracy(kept: np.ndarray, weights: np.ndarray | None = None) -> float:
        outcomes = [
            filtered_vote(
                list(answers[group]),
                list(kept[group]),
                weights=None if weights is None else list(weights[group]),
                correct=truth,
            )
            for group, truth in zip(questions, truths, strict=True)
        ]
        return float(np.mean([vote.correct for vote in outcomes]))

    def filtered(values: np.ndarray, threshold: float) -> list[float]:
        decided = prefix_filter(
            jnp.asarray(values, jnp.float32),
            jnp.asarray(scores.mask),
            threshold=threshold,
            ignored_tokens=IGNORED_TOKENS,
        )
        kept, read = np.asarray(decided.kept), np.array(decided.tokens_read)
        for group in questions:
            if not kept[group].any():
                # All vote, so all must be read.
                read[group] = tokens[group]
        return [float(read.sum() / tokens.sum()), accuracy(kept), float(1 - kept.mean())]

    final = at_share(scores.rewards, scores.mask, 1.0)
    best = np.zeros(len(rows), bool)
    for group in questions:
        best[group[np.argmax(final[group])]] = True
    weights = np.exp(final - final.max())
    rng = np.random.default_rng(0)
    fewer = []
    for count in range(1, 5):
        draws = []
        for _ in range(20):
            kept = np.zeros(len(rows), bool)
            for group in questions:
                kept[rng.permutation(group)[:count]] = True
            draws.append([float(tokens[kept].sum() / tokens.sum()), accuracy(kept)])
        fewer.append(np.mean(draws, axis=0).tolist())
    return {
        "majority": accuracy(everything),
        "reward_weighted": accuracy(everything, weights),
        "best_reward": accuracy(best),
        "q_at_0": filtered(scores.values, 0.0),
        "fewer": fewer,
        "curves": {
            name: [
                filtered(
                    values,
                    threshold_that_drops(
                        lowest_scores(values, scores.mask, IGNORED_TOKENS),
                        round(share * len(rows)),
                    ),
                )
                for share in DROPPED
            ]
            for name, values in ((name, _of(scores, name)) for name in SCORERS)
        },
    }


def _of(scores: PrefixScores, name: str) -> np.ndarray:
    return {"q": scores.values, "reward": scores.rewards}[name]
