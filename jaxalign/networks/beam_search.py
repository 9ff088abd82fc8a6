"""Beam search: as in T5X, with a cache that never moves. Compiled once per shape; it stops when no live beam can become one of the best."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.networks import decoding_hooks
from jaxalign.networks.decoding import (
    EOS,
    PAD,
    Generations,
    PromptTokens,
    cache_sizes,
    decode_in_segments,
    numbers_of,
    require_positive,
)
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks, HookStates
from jaxalign.networks.decoding_scores import AtPosition
from jaxalign.networks.protocols import DecodingPolicy
from jaxalign.networks.shapes import AnyArray, Params
from jaxalign.networks.token_choice import Proposal, without_pad

EMPTY = -1e7  # score of an empty beam, as in T5X


def beam_search(
    policy: DecodingPolicy,
    params: Params,
    encoder_input_tokens: PromptTokens,
    *,
    num_beams: int,
    alpha: float = 0.6,
    max_decode_len: int,
    hooks: Hooks = NO_HOOKS,
    prompt_numbers: AnyArray | None = None,
) -> Generations:
    """Beam search as in T5X: beams by increasing score, the best last. PAD is never chosen.

    A beam that has ended scores ``log_prob / ((5 + length) / 6) ** alpha`` (Wu et al. 2016, arXiv 1609.08144, equation 14). Where
    fewer than `num_beams` have ended, the first ones are empty, with a score and log-probability of `EMPTY`; where none has,
    the unfinished beams are returned, scored by their log-probability.

    With `hooks`, the score that they define takes the place of the log-probability in the ranking. A beam after which nothing is allowed
    is dropped. Where this happens to all beams of a row before one has ended, all of them are empty, and `dead_ends` is True.
    The search does not stop early if a number is added to scores, because a live beam may then still gain.

    Args:
      policy: the network.
      params: its parameters.
      encoder_input_tokens: one prompt per row, ending in EOS, then PAD.
      num_beams: beams per prompt.
      alpha: strength of the length penalty; 0 compares log-probabilities.
      max_decode_len: tokens, EOS included, after which a beam is cut.
      hooks: which tokens are allowed, and what is added to their scores.
      prompt_numbers: the numbers ``[rows]`` of the prompts that hooks speak of; by default those of the rows.

    Raises:
      UserError: a hook does not fit.
    """
    require_positive("max_decode_len", max_decode_len)
    require_positive("num_beams", num_beams)
    prompt_numbers = numbers_of(encoder_input_tokens, prompt_numbers)
    hooks.check(policy, prompt_numbers, max_decode_len)
    return _beam_search(
        policy,
        params,
        jnp.asarray(encoder_input_tokens),
        jnp.float32(alpha),
        hooks,
        prompt_numbers,
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
    log_probs: AnyArray  # [rows, beams], under the policy
    totals: AnyArray  # [rows, beams], the log-probabilities, or what hooks make of them
    tokens: AnyArray  # [rows, beams, length]
    ancestors: AnyArray  # [rows, beams, length]: whose slot holds each position of a live beam
    ended: _Ranked  # beams that have ended, best first
    cache: Any
    hooked: HookStates


@functools.partial(jax.jit, static_argnames=("policy", "num_beams", "max_decode_len"))
def _beam_search(
    policy: Any,
    params: Any,
    encoder_input_tokens: Any,
    alpha: Any,
    hooks: Any,
    prompt_numbers: Any,
    *,
    num_beams: Any,
    max_decode_len: Any,
) -> Generations:
    rows = encoder_input_tokens.shape[0]
    prompt = policy.read_prompts(params, encoder_input_tokens, max_decode_len)
    hook_prompts = decoding_hooks.read_prompts(hooks, encoder_input_tokens, max_decode_len)
    beams = jnp.arange(num_beams)

    def penalty(length: AnyArray) -> AnyArray:
        return jnp.power((5.0 + length) / 6.0, alpha)

    def not_ended(state: _Beams) -> AnyArray:
        is_live = state.totals[:, 0] > -jnp.inf
        if hooks.score is None:
            # Log-probabilities only decrease, so no live beam can reach a better score than this.
            best_possible = state.totals[:, 0] / penalty(jnp.float32(max_decode_len))
            is_live &= jnp.min(state.ended.scores, axis=1) <= best_possible
        return jnp.any(is_live)

    def extend(state: _Beams) -> _Beams:
        position = state.position
        # A live beam writes its own slot at this position, and sees its ancestors' at earlier ones.
        ancestors = jax.lax.dynamic_update_index_in_dim(
            state.ancestors, jnp.broadcast_to(beams, (rows, num_beams)), position, axis=2
        )
        size = jax.tree.leaves(state.cache)[0].shape[2] // num_beams
        visible = (ancestors[..., :size, None] == beams).reshape(rows, num_beams, -1)
        logits, cache = policy.next_logits(prompt, state.cache, state.last, position, visible)
        proposal, hooked = decoding_hooks.propose(
            hooks, state.hooked, hook_prompts, logits, state.last, AtPosition(position, visible)
        )
        if proposal is None:
            gains = without_pad(jax.nn.log_softmax(logits))
        else:
            gains = proposal.weights - proposal.offsets[..., None]

        # Twice as many candidates as beams: even if half of them end, enough beams stay live.
        totals = (gains + state.totals[..., None]).reshape(rows, -1)
        totals, flat = jax.lax.top_k(totals, 2 * num_beams)
        parents, chosen = flat // gains.shape[-1], (flat % gains.shape[-1]).astype(jnp.int32)
        if proposal is None:
            log_probs = totals
        else:
            chosen = jnp.asarray(_tokens(proposal, parents, chosen))
            log_probs = _gather(state.log_probs, parents) + _log_probs(logits, parents, chosen)
        tokens = _gather(state.tokens, parents)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, chosen, position, axis=2)
        has_ended = chosen == EOS

        live, order = jax.lax.top_k(jnp.where(has_ended, -jnp.inf, totals), num_beams)
        scores = jnp.where(has_ended, totals / penalty(position + 1.0), -jnp.inf)
        ended = _Ranked(tokens, log_probs, scores)
        last, parents = _gather(chosen, order), _gather(parents, order)
        moved = jax.tree.map(lambda values: _gather(values, parents), hooked.allowed)
        return _Beams(
            position + 1,
            last,
            _gather(log_probs, order),
            live,
            _gather(tokens, order),
            _gather(ancestors, parents),
            _best(jax.tree.map(lambda *both: jnp.concatenate(both, 1), state.ended, ended)),
            cache,
            decoding_hooks.advance(hooks, hooked._replace(allowed=moved), last),
        )

    def _best(candidates: _Ranked) -> _Ranked:
        _, order = jax.lax.top_k(candidates.scores, num_beams)
        return jax.tree.map(lambda values: _gather(values, order), candidates)

    shape = (rows, num_beams)
    sizes = cache_sizes(max_decode_len)
    num_slots = num_beams * sizes[0]
    no_tokens = jnp.full((*shape, max_decode_len), PAD, jnp.int32)
    # Not `EMPTY`: what comes of an empty beam must stay empty, whatever the length penalty makes of it.
    nothing = jnp.full(shape, -jnp.inf, jnp.float32)
    state = _Beams(
        jnp.int32(0),
        jnp.full(shape, PAD, jnp.int32),
        # All beams are equal at first, so only one is kept.
        jnp.where(beams == 0, 0.0, nothing),
        jnp.where(beams == 0, 0.0, nothing),
        no_tokens,
        jnp.zeros((*shape, max_decode_len), jnp.int32),
        _Ranked(no_tokens, nothing, nothing),
        policy.empty_cache(rows, num_slots, num_beams),
        decoding_hooks.start(
            hooks,
            prompt_numbers,
            num_sequences=num_beams,
            max_decode_len=max_decode_len,
            num_groups=rows,
            num_slots=num_slots,
        ),
    )
    state = decode_in_segments(not_ended, extend, state, sizes, group_size=num_beams)

    ended = _without_empty(state.ended)
    live = _without_empty(_Ranked(state.tokens, state.log_probs, state.totals))
    none_ended = jnp.all(ended.scores == EMPTY, axis=1)

    def choose(unfinished: Any, finished: Any) -> Any:
        condition = none_ended.reshape(-1, *[1] * (finished.ndim - 1))
        return jnp.flip(jnp.where(condition, unfinished, finished), axis=1)

    found = jax.tree.map(choose, live, ended)
    if hooks.is_empty:
        return Generations(*found)
    dead = jnp.all(found.scores == EMPTY, axis=1, keepdims=True)
    return Generations(found.tokens, found.log_probs, found.scores, jnp.broadcast_to(dead, shape))


def _without_empty(beams: _Ranked) -> _Ranked:
    is_empty = beams.scores == -jnp.inf
    return _Ranked(
        jnp.where(is_empty[..., None], PAD, beams.tokens),
        jnp.where(is_empty, EMPTY, beams.log_probs),
        jnp.where(is_empty, EMPTY, beams.scores),
    )


def _tokens(proposal: Proposal, parents: AnyArray, index: AnyArray) -> AnyArray:
    """The tokens of candidates, by their beams and their places among the beams' candidates."""
    if proposal.tokens is None:
        return index
    flat = parents * proposal.tokens.shape[-1] + index
    return jnp.take_along_axis(proposal.tokens.reshape(len(flat), -1), flat, axis=1)


def _log_probs(logits: AnyArray, parents: AnyArray, tokens: AnyArray) -> AnyArray:
    """The log-probabilities of tokens after beams."""
    vocab_size = logits.shape[-1]
    flat = jnp.take_along_axis(
        logits.reshape(len(tokens), -1), parents * vocab_size + tokens, axis=1
    )
    return flat - _gather(jax.nn.logsumexp(logits, axis=-1), parents)


def _gather(values: Any, indices: Any) -> Any:
    """``values[row, indices[row]]`` along axis 1."""
    return jnp.take_along_axis(
        values, indices.reshape(*indices.shape, *[1] * (values.ndim - 2)), axis=1
    )
