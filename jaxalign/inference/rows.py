"""Arranges prompts and responses in token rows of a few lengths, and computes network outputs for them.

Inference never packs. Each row has one prompt, and the decoder row has its K responses one after another, in the layout of training
(`data.batches.make_batch`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxalign.data.batches import Batch, make_batch
from jaxalign.data.examples import make_example
from jaxalign.parallel.progress import progress
from jaxalign.parallel.row_devices import RowDevices

PAD, EOS = 0, 1

Tokens = Sequence[int]


def bucket_length(longest: int, maximum: int) -> int:
    """Returns the smallest of 16, 24, 32, 48, 64, 96, ... that is at least `longest`, but at most `maximum`.

    Padding to a few lengths bounds the number of compilations. It wastes at most a third.
    """
    power = 16
    while True:
        for length in (power, power + power // 2):
            if length >= min(longest, maximum):
                return min(length, maximum)
        power *= 2


def decode_tokens(vocabulary: Any, tokens: Tokens) -> str:
    """Returns the text of a response, up to EOS and without padding."""
    ids = [int(token) for token in tokens]
    if EOS in ids:
        ids = ids[: ids.index(EOS)]
    return vocabulary.decode([token for token in ids if token != PAD])


def response_tokens(row: Int[np.ndarray, " length"]) -> list[int]:
    """Returns the tokens of one generated row, up to and including the first EOS, or up to the padding."""
    ids = [int(token) for token in row]
    if EOS in ids:
        return ids[: ids.index(EOS) + 1]
    while ids and ids[-1] == PAD:
        ids.pop()
    return ids


def response_batch(
    prompts: Sequence[Tokens],
    responses: Sequence[Sequence[Tokens]],
    *,
    rows: int,
    input_length: int,
    target_length: int,
) -> Batch:
    """Builds a batch with one prompt per row and its responses (the same number for every prompt), in the layout of training.

    Args:
      prompts: token ids that end with EOS.
      responses: `[prompts][K]` token ids, with EOS if the response ended.
      rows: the number of rows of the batch; rows without a prompt are empty.
      input_length, target_length: the row lengths; the decoder row holds all K responses.
    """
    per_prompt = len(responses[0]) if responses else 0
    if any(len(group) != per_prompt for group in responses):
        raise ValueError("every prompt needs the same number of responses.")
    examples = [
        make_example(prompt, group, None, None, prompt_id=1)
        for prompt, group in zip(prompts, responses, strict=True)
    ]
    return make_batch(
        [[(index, example)] for index, example in enumerate(examples)],
        num_rows=rows,
        input_length=input_length,
        target_length=target_length,
        examples_per_row=1,
        responses_per_example=per_prompt,
        with_feedback=False,
    )


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yields slices of at most `size` items that cover `count` items."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@functools.lru_cache(maxsize=32)
def jitted(network: Any, method: str) -> Callable[..., Any]:
    """Returns a compiled method of a (hashable) network description, shared by all calls."""
    return jax.jit(getattr(network, method))


# What a method of a network does, for the progress that is shown.
_DOING = {"score": "scoring"}


def by_batch(
    prompts: Sequence[Tokens],
    responses: Sequence[Sequence[Tokens]],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields batches of prompts of similar length, each with the indices of its prompts.

    Every batch has `batch_size` rows, which is cheaper than compilation for another shape. The last batch may end with empty rows.
    """
    totals = np.array([len(p) + sum(map(len, r)) for p, r in zip(prompts, responses, strict=True)])
    order = np.argsort(totals, kind="stable")
    for part in chunks(len(order), batch_size):
        index = order[part]
        chosen, groups = [prompts[i] for i in index], [responses[i] for i in index]
        longest = max(map(len, chosen))
        longest_target = max(sum(map(len, group)) for group in groups)
        yield (
            index,
            response_batch(
                chosen,
                groups,
                rows=batch_size,
                input_length=bucket_length(longest, longest * 2),
                target_length=bucket_length(longest_target, longest_target * 2),
            ),
        )


def outputs(
    network: Any,
    method: str,
    params: Any,
    prompts: Sequence[Tokens],
    responses: Sequence[Sequence[Tokens]],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields a network's outputs of batches of similar length, each with the indices of its prompts.

    Args:
      network, method: the network, and the name of its method of ``(params, batch)``.
      params: its parameters. Rows are divided among the devices on which they lie.
      prompts, responses: as in `response_batch`.
      batch_size: rows of a batch, at least. The rows behind those of the indices are empty.
    """
    devices = RowDevices(params)
    batches = by_batch(prompts, responses, devices.multiple(batch_size))
    counted = ((len(index), (index, batch)) for index, batch in batches)
    for index, batch in progress(counted, len(prompts), _DOING.get(method, method), "prompt"):
        with devices.active():
            found = jitted(network, method)(params, devices.put(batch))
        yield index, found


def score_responses(
    policy: Any,
    params: Any,
    prompts: Sequence[Tokens],
    responses: Sequence[Sequence[Tokens]],
    *,
    batch_size: int = 32,
) -> tuple[Float[np.ndarray, "prompts responses"], Float[np.ndarray, "prompts responses"]]:
    """Computes log-probabilities (nats, sums over tokens) and lengths (tokens) of given responses.

    Args:
      policy: any network with `score(params, batch) -> (log_probs, lengths)`, [examples, K] each.
      prompts, responses: as in `response_batch`.
    """
    shape = (len(prompts), len(responses[0]) if responses else 0)
    log_probs, lengths = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    for index, scores in outputs(policy, "score", params, prompts, responses, batch_size):
        log_probs[index] = np.asarray(scores.log_probs)[: len(index)]
        lengths[index] = np.asarray(scores.lengths)[: len(index)]
    return log_probs, lengths


def predict_rewards(
    network: Any,
    params: Any,
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    *,
    batch_size: int = 32,
) -> Float[np.ndarray, " prompts"]:
    """Computes the rewards of responses, one response per prompt.

    Args:
      network: any network with `rewards(params, batch) -> [examples, responses]`.
      prompts, responses: token ids, EOS included.
    """
    rewards = np.zeros(len(prompts), np.float64)
    groups = [[response] for response in responses]
    for index, found in outputs(network, "rewards", params, prompts, groups, batch_size):
        rewards[index] = np.asarray(found)[: len(index), 0]
    return rewards


def predict_values(
    value: Any, params: Any, prompts: Sequence[Tokens], *, batch_size: int = 32
) -> Float[np.ndarray, " prompts"]:
    """Computes V(x) of every prompt, in units of the reward that the value network was trained on."""
    values = np.zeros(len(prompts), np.float64)
    # A value network reads only the prompt. An empty response completes the batch layout.
    responses = [[[EOS]] for _ in prompts]
    for index, found in outputs(value, "values", params, prompts, responses, batch_size):
        values[index] = np.asarray(found)[: len(index)]
    return values
