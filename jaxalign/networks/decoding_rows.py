"""Continuous batching on the device: the rows of a batch begin and end at different times.

A row holds one prompt and its samples. It is replaced by the next prompt when all its samples have ended. A few programs serve all
prompts: the shapes are those of the batch, and the slots of its cache, of which only few numbers occur.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxalign.networks.shapes import AnyArray
from jaxalign.networks.token_choice import EOS, PAD, choose, sequence_keys


class Rows(NamedTuple):
    """The state of a batch in decoding. Slot ``step % slots`` of `tokens` and of the cache is the next that is written."""

    step: AnyArray
    positions: AnyArray  # [rows]: tokens that a row has, with the padding behind those of its samples that have ended
    last: AnyArray  # [rows, samples]
    finished: AnyArray  # [rows, samples]
    log_probs: AnyArray  # [rows, samples]
    keys: AnyArray  # [rows, samples]
    tokens: AnyArray  # [rows, samples, slots]
    cache: Any


@functools.partial(jax.jit, static_argnames=("policy", "max_decode_len"))
def encode(policy: Any, params: Any, tokens: Any, *, max_decode_len: int) -> Any:
    """What decoding reads of each prompt, one to a row."""
    return policy.read_prompts(params, tokens, max_decode_len).by_row


@functools.partial(jax.jit, static_argnames=("policy", "max_decode_len"))
def constants(policy: Any, params: Any, *, max_decode_len: int) -> Any:
    """What decoding reads of the parameters: a prompt without tokens."""
    return policy.read_prompts(params, jnp.zeros((1, 1), jnp.int32), max_decode_len)


@functools.partial(jax.jit, static_argnames=("policy", "num_rows", "num_samples", "num_slots"))
def idle_rows(policy: Any, *, num_rows: int, num_samples: int, num_slots: int) -> Rows:
    """Rows without prompts."""
    shape = (num_rows, num_samples)
    return Rows(
        jnp.int32(0),
        jnp.zeros(num_rows, jnp.int32),
        jnp.full(shape, PAD, jnp.int32),
        jnp.ones(shape, bool),
        jnp.zeros(shape, jnp.float32),
        sequence_keys(jax.random.key(0), jnp.zeros(num_rows, jnp.int32), num_samples),
        jnp.full((*shape, num_slots), PAD, jnp.int32),
        policy.empty_cache(num_rows * num_samples, num_slots),
    )


@functools.partial(jax.jit, donate_argnames=("rows", "prompts"))
def replace_rows(
    rows: Rows,
    prompts: Any,
    encoded: Any,
    sources: AnyArray,
    indices: AnyArray,
    key: PRNGKeyArray,
) -> tuple[Rows, Any]:
    """Lets rows begin with other prompts.

    Args:
      rows: the state.
      prompts: what the rows read of their prompts.
      encoded: what `encode` returned for other prompts.
      sources: the row of `encoded` that each row takes; -1: it stays as it is.
      indices: the index of each new prompt, from which its keys follow.
      key: of all prompts.
    """
    is_new = sources >= 0

    def put(new: Any, old: Any) -> Any:
        return jnp.where(is_new.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    def take(new: Any, old: Any) -> Any:
        return put(jnp.take(new, sources, axis=0, mode="clip"), old)

    keys = sequence_keys(key, indices, rows.last.shape[1])
    rows = rows._replace(
        positions=put(0, rows.positions),
        last=put(PAD, rows.last),
        finished=put(False, rows.finished),
        log_probs=put(0.0, rows.log_probs),
        keys=put(keys, rows.keys),
    )
    return rows, jax.tree.map(take, encoded, prompts)


@functools.partial(jax.jit, static_argnames=("num_slots",))
def with_slots(rows: Rows, *, num_slots: int) -> Rows:
    """The state with more slots, or with fewer: then with the last that were written."""
    before = rows.tokens.shape[-1]
    distances = (
        rows.step - 1 - jnp.arange(num_slots)
    ) % num_slots  # steps since a new slot was written
    sources = (rows.step - 1 - distances) % before
    move = functools.partial(jnp.take, indices=sources, axis=2)
    return rows._replace(tokens=move(rows.tokens), cache=jax.tree.map(move, rows.cache))


@functools.partial(
    jax.jit,
    static_argnames=("policy", "greedy", "top_k", "nucleus", "max_decode_len"),
    donate_argnames=("rows",),
)
def decode(
    policy: Any,
    prompt: Any,
    prompts: Any,
    rows: Rows,
    temperature: Any,
    top_p: Any,
    max_steps: Any,
    enough: Any,
    *,
    greedy: bool,
    top_k: int,
    nucleus: bool,
    max_decode_len: int,
) -> Rows:
    """Decodes until `enough` rows are idle or have ended, for at most `max_steps` tokens.

    Args:
      policy, prompt, prompts: the network, its `constants`, and what the rows read of their prompts.
      rows: the state.
      temperature, top_p, greedy, top_k, nucleus: as in `token_choice.choose`.
      max_steps: such that no unfinished row gets more tokens than there are slots.
      enough: the number of rows that stops decoding.
      max_decode_len: tokens after which a response is cut.
    """
    prompt = prompt.with_rows(prompts)
    last_step = rows.step + max_steps

    def goes_on(state: Rows) -> AnyArray:
        ended = jnp.sum(jnp.all(state.finished, axis=1))
        return (state.step < last_step) & (ended < enough)

    def extend(state: Rows) -> Rows:
        logits, cache = policy.next_logits_in_ring(
            prompt, state.cache, state.last, state.step, state.positions
        )
        chosen, log_probs = choose(
            logits,
            state.keys,
            state.positions,
            temperature,
            top_p,
            greedy=greedy,
            top_k=top_k,
            nucleus=nucleus,
        )
        chosen = jnp.where(state.finished, PAD, chosen)
        positions = state.positions + 1
        slot = state.step % state.tokens.shape[-1]
        return state._replace(
            step=state.step + 1,
            positions=positions,
            last=chosen,
            finished=state.finished | (chosen == EOS) | (positions >= max_decode_len)[:, None],
            log_probs=state.log_probs + jnp.where(state.finished, 0.0, log_probs),
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, chosen, slot, axis=2),
            cache=cache,
        )

    return jax.lax.while_loop(goes_on, extend, rows)
