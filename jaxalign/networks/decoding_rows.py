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

from jaxalign.networks import decoding_hooks
from jaxalign.networks.decoding_hooks import HookStates
from jaxalign.networks.decoding_scores import InRing
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
    scores: AnyArray  # [rows, samples]
    dead_ends: AnyArray  # [rows, samples]
    hooked: HookStates


@functools.partial(jax.jit, static_argnames=("policy", "max_decode_len"))
def encode(policy: Any, params: Any, tokens: Any, hooks: Any, *, max_decode_len: int) -> Any:
    """What decoding reads of each prompt, one to a row: a tuple for the policy and the networks of the hooks."""
    prompts = _read(policy, params, tokens, hooks, max_decode_len)
    return tuple(prompt.by_row for prompt in prompts)


@functools.partial(jax.jit, static_argnames=("policy", "max_decode_len"))
def constants(policy: Any, params: Any, hooks: Any, *, max_decode_len: int) -> Any:
    """What decoding reads of the parameters of the same networks: prompts without tokens."""
    return _read(policy, params, jnp.zeros((1, 1), jnp.int32), hooks, max_decode_len)


def _read(policy: Any, params: Any, tokens: Any, hooks: Any, max_decode_len: int) -> Any:
    own = policy.read_prompts(params, tokens, max_decode_len)
    return own, *decoding_hooks.read_prompts(hooks, tokens, max_decode_len)


@functools.partial(
    jax.jit, static_argnames=("policy", "num_rows", "num_samples", "num_slots", "max_decode_len")
)
def idle_rows(
    policy: Any,
    hooks: Any,
    *,
    num_rows: int,
    num_samples: int,
    num_slots: int,
    max_decode_len: int,
) -> Rows:
    """Rows without prompts."""
    shape = (num_rows, num_samples)
    no_prompts = jnp.zeros(num_rows, jnp.int32)
    return Rows(
        jnp.int32(0),
        jnp.zeros(num_rows, jnp.int32),
        jnp.full(shape, PAD, jnp.int32),
        jnp.ones(shape, bool),
        jnp.zeros(shape, jnp.float32),
        sequence_keys(jax.random.key(0), no_prompts, num_samples),
        jnp.full((*shape, num_slots), PAD, jnp.int32),
        policy.empty_cache(num_rows * num_samples, num_slots),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, bool),
        decoding_hooks.start(
            hooks,
            no_prompts,
            num_sequences=num_samples,
            max_decode_len=max_decode_len,
            num_groups=num_rows * num_samples,
            num_slots=num_slots,
        ),
    )


@functools.partial(
    jax.jit, static_argnames=("max_decode_len",), donate_argnames=("rows", "prompts")
)
def replace_rows(
    rows: Rows,
    prompts: Any,
    encoded: Any,
    sources: AnyArray,
    indices: AnyArray,
    key: PRNGKeyArray,
    hooks: Any,
    *,
    max_decode_len: int,
) -> tuple[Rows, Any]:
    """Lets rows begin with other prompts.

    Args:
      rows: the state.
      prompts: what the rows read of their prompts.
      encoded: what `encode` returned for other prompts.
      sources: the row of `encoded` that each row takes; -1: it stays as it is.
      indices: the index of each new prompt, from which its keys follow; hooks know the prompt by it.
      key: of all prompts.
      hooks: of decoding.
      max_decode_len: tokens after which a response is cut.
    """
    is_new = sources >= 0

    def put(new: Any, old: Any) -> Any:
        return jnp.where(is_new.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    def take(new: Any, old: Any) -> Any:
        return put(jnp.take(new, sources, axis=0, mode="clip"), old)

    num_samples = rows.last.shape[1]
    keys = sequence_keys(key, indices, num_samples)
    begun = decoding_hooks.start_allowed(hooks, indices, num_samples, max_decode_len)
    rows = rows._replace(
        positions=put(0, rows.positions),
        last=put(PAD, rows.last),
        finished=put(False, rows.finished),
        log_probs=put(0.0, rows.log_probs),
        keys=put(keys, rows.keys),
        scores=put(0.0, rows.scores),
        dead_ends=put(False, rows.dead_ends),
        hooked=rows.hooked._replace(allowed=jax.tree.map(put, begun, rows.hooked.allowed)),
    )
    return rows, jax.tree.map(take, encoded, prompts)


@functools.partial(jax.jit, static_argnames=("num_slots",))
def with_slots(rows: Rows, *, num_slots: int) -> Rows:
    """The state with more slots, or with fewer: then with the last that were written."""
    change = num_slots - rows.tokens.shape[-1]

    def move(old: AnyArray) -> AnyArray:
        # A network of the hooks may have one slot more.
        before = old.shape[2]
        after = before + change
        distances = (rows.step - 1 - jnp.arange(after)) % after  # steps since a slot was written
        return jnp.take(old, (rows.step - 1 - distances) % before, axis=2)

    return rows._replace(
        tokens=move(rows.tokens),
        cache=jax.tree.map(move, rows.cache),
        hooked=rows.hooked._replace(caches=jax.tree.map(move, rows.hooked.caches)),
    )


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
    hooks: Any,
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
      hooks: which tokens are allowed, and what is added to their scores.
      max_decode_len: tokens after which a response is cut.
    """
    prompt, *hook_prompts = [
        each.with_rows(by_row) for each, by_row in zip(prompt, prompts, strict=True)
    ]
    last_step = rows.step + max_steps

    def goes_on(state: Rows) -> AnyArray:
        ended = jnp.sum(jnp.all(state.finished, axis=1))
        return (state.step < last_step) & (ended < enough)

    def extend(state: Rows) -> Rows:
        logits, cache = policy.next_logits_in_ring(
            prompt, state.cache, state.last, state.step, state.positions
        )
        proposal, hooked = decoding_hooks.propose(
            hooks,
            state.hooked,
            tuple(hook_prompts),
            logits,
            state.last,
            InRing(state.step, state.positions),
        )
        found = choose(
            logits,
            state.keys,
            state.positions,
            temperature,
            top_p,
            greedy=greedy,
            top_k=top_k,
            nucleus=nucleus,
            proposal=proposal,
        )
        ended = decoding_hooks.ended(state.finished, proposal)
        chosen = jnp.where(ended, PAD, found.tokens)
        positions = state.positions + 1
        slot = state.step % state.tokens.shape[-1]
        return state._replace(
            step=state.step + 1,
            positions=positions,
            last=chosen,
            finished=ended | (chosen == EOS) | (positions >= max_decode_len)[:, None],
            log_probs=state.log_probs + jnp.where(ended, 0.0, found.log_probs),
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, chosen, slot, axis=2),
            cache=cache,
            scores=state.scores + jnp.where(ended, 0.0, found.gains),
            dead_ends=state.dead_ends | (ended & ~state.finished),
            hooked=decoding_hooks.advance(hooks, hooked, chosen),
        )

    return jax.lax.while_loop(goes_on, extend, rows)
