"""Decodes many prompts in one batch of rows: a row whose samples have all ended takes the next prompt.

The shapes are few and do not depend on the number of prompts, so that the same programs serve all rounds of a run: the rows of the
batch, a length of prompts, and a number of cache slots that follows the longest unfinished response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxalign.data.batches import prompt_rows
from jaxalign.inference.rows import EOS, PAD, Tokens
from jaxalign.networks import decoding_rows
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks
from jaxalign.parallel.row_devices import RowDevices

SMALLEST_CACHE = 64  # slots
MARGIN = 16  # tokens that at least fit into a cache before it must grow
IDLE_SHARE = 8  # decoding stops to take new prompts when one of so many rows is idle


class Shapes(NamedTuple):
    """The shapes of a batch.

    Attributes:
      rows: prompts that are decoded at a time; more where the devices would not divide them.
      samples: responses of each prompt.
      input_length: tokens to which prompts are padded.
      max_decode_len: tokens after which a response is cut.
    """

    rows: int
    samples: int
    input_length: int
    max_decode_len: int


class Choice(NamedTuple):
    """How tokens are chosen, as in `networks.token_choice.choose`."""

    temperature: float
    top_k: int
    top_p: float


def decode_prompts(
    policy: Any,
    params: Any,
    prompts: Sequence[Tokens],
    indices: Int[np.ndarray, " prompts"],
    shapes: Shapes,
    choice: Choice,
    key: Any,
    hooks: Hooks = NO_HOOKS,
) -> tuple[Int[np.ndarray, "prompts samples length"], Float[np.ndarray, "prompts samples"]]:
    """Returns the responses to all prompts, in their order, and the responses' log-probabilities.

    Args:
      policy, params: the network. Rows are divided among the devices on which the parameters lie.
      prompts: token ids; those with long responses should come first.
      indices: the numbers from which, with `key`, the keys of the prompts follow; hooks know the prompts by them.
      shapes: of the batch.
      choice: how tokens are chosen.
      key: of all prompts.
      hooks: which tokens are allowed, and what is added to their scores. A response after which nothing is allowed ends without EOS.

    Raises:
      UserError: a hook does not fit.
    """
    hooks.check(policy, indices, shapes.max_decode_len)
    devices = RowDevices(params)
    shapes = shapes._replace(rows=devices.multiple(shapes.rows))
    with devices.active():
        return _decode_prompts(
            policy, params, prompts, indices, shapes, choice, key, hooks, devices
        )


def _decode_prompts(
    policy: Any,
    params: Any,
    prompts: Sequence[Tokens],
    indices: Int[np.ndarray, " prompts"],
    shapes: Shapes,
    choice: Choice,
    key: Any,
    hooks: Hooks,
    devices: RowDevices,
) -> tuple[np.ndarray, np.ndarray]:
    count, length = len(prompts), shapes.max_decode_len
    tokens = np.full((count, shapes.samples, length), PAD, np.int32)
    log_probs = np.zeros((count, shapes.samples), np.float32)
    constants = decoding_rows.constants(policy, params, hooks, max_decode_len=length)
    rows = devices.put(
        decoding_rows.idle_rows(
            policy,
            hooks,
            num_rows=shapes.rows,
            num_samples=shapes.samples,
            num_slots=cache_slots(0, length),
            max_decode_len=length,
        )
    )
    owners = np.full(shapes.rows, -1)  # the prompt of each row; -1: none
    ages = np.zeros(shapes.rows, np.int64)  # tokens since a row began
    reading: Any = None  # what the rows read of their prompts
    encoded: Any = None  # the same of the prompts [begin, end)
    begin = end = begun = 0
    while True:
        idle = np.flatnonzero(owners < 0)
        while begun < count and idle.size:
            if begun == end:
                begin, end = end, min(end + shapes.rows, count)
                padded = [*prompts[begin:end], *[[EOS]] * (shapes.rows - (end - begin))]
                encoded = decoding_rows.encode(
                    policy,
                    params,
                    devices.put(prompt_rows(padded, shapes.input_length)),
                    hooks,
                    max_decode_len=length,
                )
            if reading is None:
                reading = jax.tree.map(jnp.copy, encoded)
            taken = idle[: end - begun]
            new = np.arange(begun, begun + len(taken))
            rows, reading = decoding_rows.replace_rows(
                rows,
                reading,
                encoded,
                _at(taken, new - begin, shapes.rows, -1),
                _at(taken, indices[new], shapes.rows, 0),
                key,
                hooks,
                max_decode_len=length,
            )
            owners[taken], ages[taken] = new, 0
            idle, begun = idle[len(taken) :], begun + len(taken)
        busy = owners >= 0
        if not busy.any():
            return tokens, log_probs
        oldest = int(ages[busy].max())
        slots = cache_slots(oldest, length)
        if slots != rows.tokens.shape[-1]:
            rows = decoding_rows.with_slots(rows, num_slots=slots)
        enough = idle.size + max(1, shapes.rows // IDLE_SHARE) if begun < count else shapes.rows
        rows = decoding_rows.decode(
            policy,
            constants,
            reading,
            rows,
            np.float32(choice.temperature),
            np.float32(choice.top_p),
            np.int32(slots - oldest),
            np.int32(enough),
            hooks,
            greedy=choice.temperature == 0,
            top_k=choice.top_k,
            nucleus=choice.top_p < 1,
            max_decode_len=length,
        )
        finished, ages, step, ring, found = jax.device_get(
            (rows.finished, rows.positions, rows.step, rows.tokens, rows.log_probs)
        )
        for row in np.flatnonzero(finished.all(axis=1) & busy):
            age = int(ages[row])
            tokens[owners[row], :, :age] = ring[row][:, (step - age + np.arange(age)) % slots]
            log_probs[owners[row]] = found[row]
            owners[row] = -1
        ages = np.array(ages)


def cache_slots(oldest: int, max_decode_len: int) -> int:
    """The number of slots for responses of which the longest has `oldest` tokens: a power of two, at most the maximal length."""
    slots = SMALLEST_CACHE
    while slots < oldest + MARGIN:
        slots *= 2
    return min(slots, max_decode_len)


def _at(positions: np.ndarray, values: np.ndarray, size: int, default: int) -> np.ndarray:
    result = np.full(size, default, np.int32)
    result[positions] = values
    return result
