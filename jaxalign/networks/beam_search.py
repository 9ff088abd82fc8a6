"""Beam search: as in T5X, with a cache that never moves. Compiled once per shape; it stops when no live beam can become one of the best."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.networks.decoding import (
    EOS,
    PAD,
    Generations,
    PromptTokens,
    require_positive,
)
from jaxalign.networks.protocols import DecodingPolicy
from jaxalign.networks.shapes import AnyArray, Params
from jaxalign.networks.token_choice import without_pad

EMPTY = -1e7  # score of an empty beam, as in T5X


def beam_search(
    policy: DecodingPolicy,
    params: Params,
    encoder_input_tokens: PromptTokens,
    *,
    num_beams: int,
    alpha: float = 0.6,
    max_decode_len: int,
) -> Generations:
    """Beam search as in T5X: beams by increasing score, the best last. PAD is never chosen.

    A beam that has ended scores ``log_prob / ((5 + length) / 6) ** alpha`` (Wu et al. 2016, arXiv 1609.08144, equation 14). Where
    fewer than `num_beams` have ended, the first ones are empty, with a score and log-probability of `EMPTY`; where none has,
    the unfinished beams are returned, scored by their log-probability.

    Args:
      policy: the network.
      params: its parameters.
      encoder_input_tokens: one prompt per row, ending in EOS, then PAD.
      num_beams: beams per prompt.
      alpha: strength of the length penalty; 0 compares log-probabilities.
      max_decode_len: tokens, EOS included, after which a beam is cut.
    """
    require_positive("max_decode_len", max_decode_len)
    require_positive("num_beams", num_beams)
    return _beam_search(
        policy,
        params,
        jnp.asarray(encoder_input_tokens),
        jnp.float32(alpha),
        num_beams=num_beams,
        max_decode_len=max_decode_len,
    )


class _Ranked(NamedTuple):
    tokens: AnyArray  # [rows, beams, length]
    log_probs: AnyArray  # [rows, beams]
    scores: AnyArray  # [rows, beams]


class _Beams(NamedTuple):
    position: AnyArray
    last: AnyArray  # [rows, beams], of the live beams, best first
    log_probs: AnyArray  # [rows, beams]
    tokens: AnyArray  # [rows, beams, length]
    ancestors: AnyArray  # [rows, beams, length]: whose slot holds each position of a live beam
    ended: _Ranked  # beams that have ended, best first
    cache: Any


@functools.partial(jax.jit, static_argnames=("policy", "num_beams", "max_decode_len"))
def _beam_search(
    policy: Any,
    params: Any,
    encoder_input_tokens: Any,
    alpha: Any,
    *,
    num_beams: Any,
    max_decode_len: Any,
) -> Generations:
    rows, vocab_size = encoder_input_tokens.shape[0], policy.vocab_size
    prompt = policy.read_prompts(params, encoder_input_tokens, max_decode_len)
    beams = jnp.arange(num_beams)

    def penalty(length: AnyArray) -> AnyArray:
        return jnp.power((5.0 + length) / 6.0, alpha)

    def not_ended(state: _Beams) -> AnyArray:
        # Log-probabilities only decrease, so no live beam can reach a better score than this.
        best_possible = state.log_probs[:, 0] / penalty(jnp.float32(max_decode_len))
        worst_ended = jnp.min(state.ended.scores, axis=1)
        return (state.position < max_decode_len) & jnp.any(worst_ended <= best_possible)

    def extend(state: _Beams) -> _Beams:
        position = state.position
        # A live beam writes its own slot at this position, and sees its ancestors' at earlier ones.
        ancestors = jax.lax.dynamic_update_index_in_dim(
            state.ancestors, jnp.broadcast_to(beams, (rows, num_beams)), position, axis=2
        )
        visible = (ancestors[..., None] == beams).reshape(rows, num_beams, -1)
        logits, cache = policy.next_logits(prompt, state.cache, state.last, position, visible)
        log_probs = without_pad(jax.nn.log_softmax(logits)) + state.log_probs[..., None]

        # Twice as many candidates as beams: even if half of them end, enough beams stay live.
        log_probs, flat = jax.lax.top_k(log_probs.reshape(rows, -1), 2 * num_beams)
        parents, chosen = flat // vocab_size, (flat % vocab_size).astype(jnp.int32)
        tokens = _gather(state.tokens, parents)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, chosen, position, axis=2)
        has_ended = chosen == EOS

        live, order = jax.lax.top_k(log_probs + jnp.where(has_ended, EMPTY, 0.0), num_beams)
        scores = log_probs / penalty(position + 1.0) + jnp.where(has_ended, 0.0, EMPTY)
        ended = _Ranked(tokens, log_probs, scores)
        return _Beams(
            position + 1,
            _gather(chosen, order),
            live,
            _gather(tokens, order),
            _gather(ancestors, _gather(parents, order)),
            _best(jax.tree.map(lambda *both: jnp.concatenate(both, 1), state.ended, ended)),
            cache,
        )

    def _best(candidates: _Ranked) -> _Ranked:
        _, order = jax.lax.top_k(candidates.scores, num_beams)
        return jax.tree.map(lambda values: _gather(values, order), candidates)

    shape = (rows, num_beams)
    no_tokens = jnp.full((*shape, max_decode_len), PAD, jnp.int32)
    nothing = jnp.full(shape, EMPTY, jnp.float32)
    state = _Beams(
        jnp.int32(0),
        jnp.full(shape, PAD, jnp.int32),
        # All beams are equal at first, so only one is kept.
        jnp.where(beams == 0, 0.0, nothing),
        no_tokens,
        jnp.zeros((*shape, max_decode_len), jnp.int32),
        _Ranked(no_tokens, nothing, nothing),
        policy.empty_cache(rows, num_beams * max_decode_len),
    )
    state = jax.lax.while_loop(not_ended, extend, state)

    is_empty = state.ended.scores <= EMPTY / 2
    ended = _Ranked(
        jnp.where(is_empty[..., None], PAD, state.ended.tokens),
        jnp.where(is_empty, EMPTY, state.ended.log_probs),
        jnp.where(is_empty, EMPTY, state.ended.scores),
    )
    live = _Ranked(state.tokens, state.log_probs, state.log_probs)
    none_ended = jnp.all(is_empty, axis=1)

    def choose(unfinished: Any, finished: Any) -> Any:
        condition = none_ended.reshape(-1, *[1] * (finished.ndim - 1))
        return jnp.flip(jnp.where(condition, unfinished, finished), axis=1)

    return Generations(*jax.tree.map(choose, live, ended))


def _gather(values: Any, indices: Any) -> Any:
    """``values[row, indices[row]]`` along axis 1."""
    return jnp.take_along_axis(
        values, indices.reshape(*indices.shape, *[1] * (values.ndim - 2)), axis=1
    )
