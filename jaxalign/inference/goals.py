"""Goals of goal-conditioned reward models (arXiv 2407.13887): the mean last state of good responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data.logged_responses import read_responses
from jaxalign.errors import UserError
from jaxalign.inference.rows import Tokens, outputs


def goal_vector(
    network: Any,
    params: Any,
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    *,
    batch_size: int = 32,
) -> Float[np.ndarray, " emb"]:
    """Returns the mean last state of good responses, for example of all preferred responses in the training data.

    Args:
      network: a network with ``prefix_states(params, batch)``, such as `jaxalign.networks.reward.DecoderRewardNetwork`.
      params: its parameters; the vector must be recomputed after any training.
      prompts, responses: token ids, EOS included; one response per prompt.
    """
    total, count = 0.0, 0
    groups = [[response] for response in responses]
    for index, found in outputs(network, "prefix_states", params, prompts, groups, batch_size):
        states, mask = found
        last = np.asarray(mask)[: len(index), 0].sum(axis=1) - 1
        total = total + np.asarray(states, np.float64)[np.arange(len(index)), 0, last].sum(axis=0)
        count += len(index)
    return np.asarray(total / max(count, 1), np.float32)


def good_responses(path: str) -> tuple[list[str], list[str]]:
    """Returns the prompts and texts of a file's good responses: those with feedback above its mean, or all if it has no feedback.

    Raises:
      UserError: the file cannot be read, or no response is better than the others.
    """
    candidates, _ = read_responses(path)
    feedback = candidates.annotations.get("feedback")
    flat = [
        (prompt, text, np.nan if feedback is None else feedback.values[index][place])
        for index, (prompt, texts) in enumerate(
            zip(candidates.prompts, candidates.responses, strict=True)
        )
        for place, text in enumerate(texts)
    ]
    values = np.array([value for *_, value in flat])
    if np.isfinite(values).any():
        flat = [item for item in flat if item[2] > np.nanmean(values)]
    if not flat:
        raise UserError(
            f"{path}: no response has feedback above the others, so there is no good response to make a goal of"
        )
    return [prompt for prompt, *_ in flat], [text for _, text, _ in flat]
