"""Training of a study's run with one learning rate, and measures of policies along its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.task_data import TaskData
from jaxalign.inference.rows import EOS, response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.networks.policy import Policy
from jaxalign.objectives.base import Objective
from jaxalign.runs.checkpoints import CHECKPOINTS
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom


def fit(
    run: Path,
    objective: Objective,
    data: TaskData,
    *,
    rate: float,
    updates: int,
    seed: int,
    rows: int = 16,
    start: Path | None = None,
    points: int = 1,
) -> dict[str, Any]:
    """Trains all networks of an objective with AdamW, a tenth of the updates as warm-up, then a cosine.

    Args:
      run: the run folder.
      objective, data, rate, updates, seed: of the run.
      rows: rows of a batch.
      start: the run whose policy is the start and the reference; a random initialisation by default.
      points: the number of checkpoints, at equal distances, the last one after all updates.

    Returns:
      The summary of the run.
    """
    return train(
        model_dir=str(run),
        objective=objective,
        data=data,
        optimizers={
            "policy": adamw(
                rate,
                warmup_steps=max(1, updates // 10),
                schedule="cosine",
                total_steps=updates,
                clip_norm=1.0,
            )
        },
        loop=LoopConfig(
            train_steps=updates,
            log_period=50,
            eval_period=0,
            checkpoint=CheckpointPolicy(period=max(1, updates // points), keep_latest=points),
            progress=False,
        ),
        batch_size=rows,
        start_from=StartFrom(str(start)) if start else StartFrom(),
        random_seed=seed,
    )


def checkpoints(run: Path, updates: int, points: int) -> dict[int, Path]:
    """Returns the checkpoints that `fit` leaves, by their number of updates."""
    period = max(1, updates // points)
    steps = dict.fromkeys([*range(period, updates, period), updates])
    return {step: run / CHECKPOINTS / str(step) for step in list(steps)[-points:]}


def sampled(
    policy: Policy, params: Any, prompts: Sequence[Sequence[int]], length: int, seed: int
) -> list[list[int]]:
    """Returns one sample at temperature 1 to every prompt as token ids; a sample without any token is an EOS."""
    tokens, _ = generate_tokens(
        policy,
        params,
        prompts,
        DecodingSettings(length, num_samples=1, temperature=1.0),
        batch_size=100,
        seed=seed,
    )
    return [response_tokens(rows[0]) or [EOS] for rows in tokens]


def kl_along(
    policy: Policy,
    params: Any,
    reference: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
) -> np.ndarray:
    """Returns KL(policy || reference) of sequences along the policy's own samples, exact at every position, [prompts], in nats."""
    rows = [[each] for each in responses]
    return sequence_kl((policy, params), (policy, reference), prompts, rows, batch_size=100)[:, 0]
