"""The arms of the study of RPO without pairs: their losses, and training on single responses or on pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.inference.rows import score_responses
from jaxalign.losses.contrastive import rpo_unpaired_loss, rpo_unpaired_uniform_loss
from jaxalign.networks.policy import Policy
from jaxalign.training.optimizers import adamw
from studies.command_line import MINI_T5
from studies.repeated_steps import endless_batches, make_step, of_examples

BETA, LEARNING_RATE, STEPS, ROWS = 0.1, 1e-4, 150, 32
TAUS = (0.1, 0.25, 0.5, 0.75)
ENCODERS = ("t5", "sentence")
WEIGHTED = {f"{encoder}_tau{tau:g}": (encoder, tau) for encoder in ENCODERS for tau in TAUS}
POLICY = Policy(MINI_T5, logits_chunk_size=None)


def loss_of(arm: str, threshold: float) -> Callable[..., Any]:
    """Returns a function from log-ratios, feedback, vectors and mask to losses and weights, [responses, 1]."""
    if arm == "uniform":
        return lambda ratios, feedback, vectors, mask: rpo_unpaired_uniform_loss(
            ratios, feedback, mask, beta=BETA, threshold=threshold
        )
    if arm in WEIGHTED:
        tau = WEIGHTED[arm][1]
        return lambda ratios, feedback, vectors, mask: rpo_unpaired_loss(
            ratios,
            feedback,
            vectors,
            mask,
            beta=BETA,
            tau=tau,
            threshold=threshold,
            scale="row_sum",
        )
    # SFT: all responses of its batches are good. A reference cancels in the gradient.
    return lambda ratios, feedback, vectors, mask: (-ratios, mask.astype(jnp.float32))


def train_single(
    arm: str,
    loss: Callable[..., Any],
    params: Any,
    prompts: list[list[int]],
    responses: list[list[int]],
    feedback: np.ndarray,
    vectors: np.ndarray,
    seed: int,
    threshold: float,
) -> Any:
    """Returns the parameters after `STEPS` steps on single responses."""
    if arm == "sft_on_good":
        kept = np.flatnonzero(feedback > threshold)
        prompts, responses = [prompts[i] for i in kept], [responses[i] for i in kept]
        feedback, vectors = feedback[kept], vectors[kept]
    reference, _ = score_responses(POLICY, params, prompts, [[each] for each in responses])

    def total(params: Any, batch: Any, reference: Any, feedback: Any, vectors: Any) -> Any:
        ratios = of_examples(POLICY.score(params, batch).log_probs, batch) - reference
        losses, weights = loss(ratios, feedback, vectors, jnp.ones(ratios.shape, bool))
        return jnp.sum(losses) / jnp.maximum(jnp.sum(weights), 1)

    others = (
        reference.astype(np.float32),
        feedback[:, None].astype(np.float32),
        vectors,
    )
    return _steps(total, params, prompts, [[each] for each in responses], others, ROWS, seed)


def train_pairs(
    params: Any,
    prompts: list[list[int]],
    chosen: list[list[int]],
    rejected: list[list[int]],
    seed: int,
) -> Any:
    """Returns the parameters after DPO with as many responses in every step."""
    groups = [list(pair) for pair in zip(chosen, rejected, strict=True)]
    reference = score_responses(POLICY, params, prompts, groups)[0].astype(np.float32)

    def total(params: Any, batch: Any, reference: Any) -> Any:
        ratios = of_examples(POLICY.score(params, batch).log_probs, batch) - reference
        return -jnp.mean(jax.nn.log_sigmoid(BETA * (ratios[:, 0] - ratios[:, 1])))

    return _steps(total, params, prompts, groups, (reference,), ROWS // 2, seed)


def _steps(
    loss: Callable[..., Any],
    params: Any,
    prompts: list[list[int]],
    groups: list[list[list[int]]],
    others: Sequence[np.ndarray],
    size: int,
    seed: int,
) -> Any:
    initial, step = make_step(loss, _optimizer())
    state = initial(params)
    batches = endless_batches(prompts, groups, size=size, generator=np.random.default_rng(seed))
    for index, batch in itertools.islice(batches, STEPS):
        params, state, _ = step(params, state, batch, *[each[index] for each in others])
    return params


def _optimizer() -> Any:
    return adamw(
        LEARNING_RATE, warmup_steps=20, schedule="cosine", total_steps=STEPS, clip_norm=1.0
    )


def log_ratios(params: Any, start: Any, prompts: Any, responses: Any) -> np.ndarray:
    """Returns the log-ratios of parameters to the start, [prompts, responses]."""
    own, reference = (
        score_responses(POLICY, each, prompts, responses, batch_size=64)[0]
        for each in (params, start)
    )
    return np.asarray(own - reference)
