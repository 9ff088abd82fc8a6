"""Training of a policy on token ids that are in memory, for studies that make new responses while they train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxalign.data.batches import make_batch
from jaxalign.data.examples import make_example
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


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The shape of packed rows.

    Attributes:
      inputs, targets: tokens of a row.
      examples: the most examples of a row.
    """

    inputs: int
    targets: int
    examples: int = 8

    @classmethod
    def of(cls, prompts: Sequence[Tokens], groups: Sequence[Sequence[Tokens]]) -> RowShape:
        """Returns rows that hold the longest example, and on average as many prompts as responses."""
        inputs = np.array([len(prompt) for prompt in prompts])
        targets = np.array([sum(map(len, group)) for group in groups])
        balanced = round(inputs.max() * targets.mean() / inputs.mean())
        return cls(int(inputs.max()), int(max(targets.max(), balanced)))


def packed_batch(
    prompts: Sequence[Tokens], groups: Sequence[Sequence[Tokens]], shape: RowShape
) -> dict[str, Any]:
    """Returns a batch of the examples in an even number of rows, so that batches have few shapes.

    Its field ``slots`` [examples] says where a network's outputs ``[rows * examples, responses]`` have each example, see `of_examples`.
    """
    examples = [
        make_example(prompt, group, None, None, prompt_id=1)
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    lengths = np.array([[len(each.inputs), each.target_lengths.sum()] for each in examples])
    rows: list[list[int]] = []
    free: list[np.ndarray] = []
    # First fit by decreasing length leaves few gaps.
    for index in np.argsort(-lengths.sum(axis=1), kind="stable"):
        place = next(
            (
                row
                for row, room in enumerate(free)
                if (room >= lengths[index]).all() and len(rows[row]) < shape.examples
            ),
            None,
        )
        if place is None:
            place = len(rows)
            rows.append([])
            free.append(np.array([shape.inputs, shape.targets]))
        rows[place].append(int(index))
        free[place] = free[place] - lengths[index]
    batch = make_batch(
        [[(index, examples[index]) for index in row] for row in rows],
        num_rows=len(rows) + len(rows) % 2,
        input_length=shape.inputs,
        target_length=shape.targets,
        examples_per_row=shape.examples,
        responses_per_example=len(groups[0]),
        with_feedback=False,
    )
    slots = np.zeros(len(examples), np.int32)
    for number, row in enumerate(rows):
        for position, index in enumerate(row):
            slots[index] = number * shape.examples + position
    return {**batch, "slots": slots}


def of_examples(outputs: Any, batch: Mapping[str, Any]) -> Any:
    """Returns the outputs of the examples of `packed_batch`, in their order, from ``[rows * examples, ...]``."""
    return outputs[batch["slots"]]


def epoch_batches(
    prompts: Sequence[Tokens],
    groups: Sequence[Sequence[Tokens]],
    *,
    size: int,
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yields the examples of an epoch in random order, in packed batches, each with the indices of its examples.

    The last, incomplete batch is left out, so that arms with equal numbers of examples have equal steps; the next epoch has another order.

    Args:
      prompts: token ids.
      groups: the responses to each prompt, the same number K for every prompt.
      size: the number of prompts of a batch.
      generator: gives the order.
    """
    if len(prompts) < size:
        raise ValueError(f"{len(prompts)} examples do not fill a batch of {size}")
    shape = RowShape.of(prompts, groups)
    order = generator.permutation(len(prompts))
    for start in range(0, len(order) - size + 1, size):
        index = order[start : start + size]
        yield index, packed_batch([prompts[i] for i in index], [groups[i] for i in index], shape)


def endless_batches(
    prompts: Sequence[Tokens],
    groups: Sequence[Sequence[Tokens]],
    *,
    size: int,
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yields the batches of one epoch after another without end; arguments as of `epoch_batches`."""
    while True:
        yield from epoch_batches(prompts, groups, size=size, generator=generator)
