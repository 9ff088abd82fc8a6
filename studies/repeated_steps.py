"""Training of a policy on token ids that are in memory, for studies that make new responses while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxalign.inference.rows import bucket_length, response_batch
from jaxalign.training.optimizers import Optimizer

Tokens = Sequence[int]


def make_step(
    loss: Callable[..., Any], optimizer: Optimizer
) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """Returns a function from parameters to the optimizer's state, and a compiled step.

    Args:
      loss: a function from the parameters, a batch and other arguments to a scalar.
      optimizer: its learning rate may follow a schedule.

    Returns:
      ``initial(params)``, and ``step(params, state, batch, *others)``, which gives new parameters, a new state and the loss.
    """
    transformation = optimizer.build(1.0)

    @jax.jit
    def step(params: Any, state: Any, batch: Any, *others: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, batch, *others)
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return transformation.init, step


def epoch_batches(
    prompts: Sequence[Tokens],
    groups: Sequence[Sequence[Tokens]],
    *,
    rows: int,
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields the examples of an epoch in random order, in batches of few shapes, each with the indices of its examples.

    The last, incomplete batch is left out, so that arms with equal numbers of examples have equal steps; the next epoch has another order.

    Args:
      prompts: token ids.
      groups: the responses to each prompt, the same number K for every prompt.
      rows: the number of prompts of a batch.
      generator: gives the order.
    """
    if len(prompts) < rows:
        raise ValueError(f"{len(prompts)} examples do not fill a batch of {rows}")
    input_lengths = [len(prompt) for prompt in prompts]
    target_lengths = [sum(map(len, group)) for group in groups]
    order = generator.permutation(len(prompts))
    for start in range(0, len(order) - rows + 1, rows):
        index = order[start : start + rows]
        input_length, target_length = (
            bucket_length(max(lengths[i] for i in index), max(lengths))
            for lengths in (input_lengths, target_lengths)
        )
        batch = response_batch(
            [prompts[i] for i in index],
            [groups[i] for i in index],
            rows=rows,
            input_length=input_length,
            target_length=target_length,
        )
        yield index, batch


def endless_batches(
    prompts: Sequence[Tokens],
    groups: Sequence[Sequence[Tokens]],
    *,
    rows: int,
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields the batches of one epoch after another without end; arguments as of `epoch_batches`."""
    while True:
        yield from epoch_batches(prompts, groups, rows=rows, generator=generator)
