"""Pairs of the study of OSP: comparisons for the judge, exact strengths, and labelled pairs with their margins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.self_judge import TEMPLATE, fill, sigmoid
from jaxalign.data.encoding import TextEncoder
from jaxalign.inference.rows import score_responses
from jaxalign.networks.policy import Policy
from studies import rnnlg_data
from studies.command_line import MINI_T5
from studies.equal_footing_forms import read_rows

# Reward is minus the share of wrong slots; a difference of this size has the probability .73.
EXACT_SCALE = 0.1
BETA = 0.1
POLICY = Policy(MINI_T5, logits_chunk_size=None)


def comparisons(
    acts: Sequence[str], groups: Sequence[Sequence[str]], count: int
) -> list[tuple[str, str]]:
    """Returns the judge's texts with their answers, both orders of each pair of responses with different rewards.

    One pair of each act comes first, then the second pairs, and so on.

    Args:
      acts, groups: the acts and the responses to each.
      count: the most pairs.
    """
    by_act = []
    for act, group in zip(acts, groups, strict=True):
        texts = [text for text in dict.fromkeys(group) if text.strip()]
        rewards = {text: rnnlg_data.feedback(act, text) for text in texts}
        by_act.append(
            [
                (act, one, other, rewards[one] > rewards[other])
                for one, other in itertools.combinations(texts, 2)
                if rewards[one] != rewards[other]
            ]
        )
    chosen = [pair for pairs in itertools.zip_longest(*by_act) for pair in pairs if pair][:count]
    rows = []
    for act, one, other, better in chosen:
        rows.append((fill(TEMPLATE, act, one, other), "A" if better else "B"))
        rows.append((fill(TEMPLATE, act, other, one), "B" if better else "A"))
    return rows


def exact_strength(act: str, one: str, other: str) -> float:
    """Returns the probability that the first response is better, from the exact rewards."""
    difference = rnnlg_data.feedback(act, one) - rnnlg_data.feedback(act, other)
    return float(sigmoid(np.array(difference / EXACT_SCALE)))


def cross_entropy(margins: np.ndarray, strengths: np.ndarray) -> float:
    """Returns the mean cross-entropy of strengths p and sigmoid(margin), in nats."""
    return float(np.mean(np.logaddexp(0, -margins) + (1 - strengths) * margins))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs as token ids, with the log-probabilities of the start and the strengths."""

    prompts: list[list[int]]
    pairs: list[tuple[list[int], list[int]]]
    reference: np.ndarray  # [pairs, 2]
    strengths: np.ndarray  # [pairs]

    @staticmethod
    def read(path: Path, encoder: TextEncoder, params: Any) -> Pairs:
        rows = read_rows(path)
        prompts = [list(each) for each in encoder.prompts([row["prompt"] for row in rows]).tokens]
        first, second = (
            [list(each) for each in encoder.responses([row[field] for row in rows]).tokens]
            for field in ("chosen", "rejected")
        )
        pairs = list(zip(first, second, strict=True))
        reference, _ = score_responses(POLICY, params, prompts, pairs, batch_size=64)
        strengths = np.array([row["margin"] for row in rows], np.float32)
        return Pairs(prompts, pairs, reference.astype(np.float32), strengths)

    def margins(self, params: Any) -> np.ndarray:
        """Returns beta times the difference of the log-ratios of every pair."""
        own, _ = score_responses(POLICY, params, self.prompts, self.pairs, batch_size=64)
        ratios = own - self.reference
        return BETA * (ratios[:, 0] - ratios[:, 1])
