"""Rewards of pairs from models, for the study `modpo_text`: of a reward model, and the implicit one of a DPO policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.annotation.judges import get_judge
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import score_responses
from jaxalign.runs.folder import Run

Rows = Sequence[Mapping[str, Any]]
Rewards = Float[np.ndarray, "prompts responses"]


def model_rewards(run: Path, rows: Rows) -> Rewards:
    """Returns the rewards of a reward model's run, in logits of a preference."""
    prompts = [row["prompt"] for row in rows for _ in row["responses"]]
    texts = [text for row in rows for text in row["responses"]]
    scores = get_judge(f"reward_model:{run}").score(prompts, texts)
    return np.asarray(scores).reshape(len(rows), -1)


def implicit_rewards(run: Path, reference: Path, rows: Rows, beta: float) -> Rewards:
    """Returns beta times the log-ratio of a DPO policy, in logits of a preference."""
    opened = [Run(each).policy() for each in (run, reference)]
    encoder = encoder_of(opened[0])
    prompts = encoder.prompts([row["prompt"] for row in rows]).tokens
    responses = [encoder.responses(row["responses"]).tokens for row in rows]
    own, base = (
        score_responses(each.network, each.params, prompts, responses, batch_size=64)[0]
        for each in opened
    )
    return beta * (own - base)


def accuracy(rows: Rows, name: str, rewards: Rewards) -> float:
    """Returns how often rewards order the two responses of a row as their exact scores do, over the rows that differ."""
    exact = np.array([[each[name] for each in row["scores"]] for row in rows])
    differs = exact[:, 0] != exact[:, 1]
    return float((np.sign(np.diff(rewards)) == np.sign(np.diff(exact)))[differs].mean())
