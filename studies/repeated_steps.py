"""Training of a policy on token ids that are in memory, for studies that make new responses while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxalign.inference.rows import response_batch
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
    responses: Sequence[Tokens],
    *,
    rows: int,
    lengths: tuple[int, int],
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields the examples of an epoch in random order, in batches of one shape, each with the indices of its examples.

    The last, incomplete batch is left out, so that arms with equal numbers of examples have equal steps; the next epoch has another order.
    """
    if len(prompts) < rows:
        raise ValueError(f"{len(prompts)} examples do not fill a batch of {rows}")
    order = generator.permutation(len(prompts))
    for start in range(0, len(order) - rows + 1, rows):
        index = order[start : start + rows]
        yield (
            index,
            response_batch(
                [prompts[i] for i in index],
                [[responses[i]] for i in index],
                rows=rows,
                input_length=lengths[0],
                target_length=lengths[1],
            ),
        )


def pair_batches(
    prompts: Sequence[Tokens],
    pairs: Sequence[tuple[Tokens, Tokens]],
    *,
    rows: int,
    lengths: tuple[int, int],
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, Any, Any]]:
    """Yields the pairs of one epoch after another without end: indices, a batch of the first and one of the second responses.

    Args:
      prompts, pairs: token ids; a prompt has one pair and occurs as often as it has pairs.
      rows: the number of pairs of a batch.
      lengths, generator: as in `epoch_batches`.
    """
    while True:
        seed = int(generator.integers(2**31))
        sides = [
            epoch_batches(
                prompts,
                [pair[side] for pair in pairs],
                rows=rows,
                lengths=lengths,
                generator=np.random.default_rng(seed),
            )
            for side in (0, 1)
        ]
        for (index, first), (_, second) in zip(*sides, strict=True):
            yield index, first, second
