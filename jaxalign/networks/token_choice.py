"""The choice of the next token from its logits: the most probable one, or a sample at a temperature, from the top k or the nucleus.

A sample needs one uniform number per sequence. It is drawn from a key of the sequence and its position alone, so that a sequence does not
depend on those that are decoded beside it. (Gumbel noise on every logit took half of a decoding step of a small model on a CPU.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key, PRNGKeyArray

from jaxalign.networks.incremental import SequenceLogits, SequenceTokens
from jaxalign.networks.shapes import AnyArray

PAD, EOS = 0, 1

SequenceValues = Float[AnyArray, "rows sequences"]
SequenceKeys = Key[AnyArray, "rows sequences"]


class Proposal(NamedTuple):
    """The tokens that may be chosen for every sequence, where `decoding_hooks` restrict or score them.

    Attributes:
      tokens: ``[rows, sequences, candidates]``; None: candidate i is token i.
      weights: logits of the distribution of samples, ``[rows, sequences, candidates]``; -inf where a candidate is not allowed.
      offsets: what `weights` exceed the gains in score by, ``[rows, sequences]``.
      is_dead: whether nothing is allowed, ``[rows, sequences]``.
    """

    tokens: AnyArray | None
    weights: AnyArray
    offsets: AnyArray
    is_dead: AnyArray


class Chosen(NamedTuple):
    """The next token of every sequence.

    Attributes:
      tokens: without meaning where the proposal is dead.
      log_probs: under the logits themselves.
      gains: what the token adds to the score; the log-probability if there is no proposal.
    """

    tokens: SequenceTokens
    log_probs: SequenceValues
    gains: SequenceValues


def sequence_keys(key: PRNGKeyArray, prompts: AnyArray, num_samples: int) -> SequenceKeys:
    """The keys ``[rows, samples]`` of sequences: fold_in(fold_in(key, index of the prompt), index of the sample)."""

    def of_prompt(index: AnyArray) -> Any:
        of_samples = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        return of_samples(jax.random.fold_in(key, index), jnp.arange(num_samples))

    return jax.vmap(of_prompt)(prompts)


def choose(
    logits: SequenceLogits,
    keys: SequenceKeys,
    positions: AnyArray,
    temperature: AnyArray,
    top_p: AnyArray,
    *,
    greedy: bool,
    top_k: int,
    nucleus: bool,
    choose_pad: bool = False,
    proposal: Proposal | None = None,
) -> Chosen:
    """The next token of every sequence.

    Args:
      logits: float32.
      keys: of the sequences, from `sequence_keys`.
      positions: target positions ``[rows]`` of the token that is chosen.
      temperature, top_p: numbers, so that other values need no other program; `top_p` counts only with `nucleus`.
      greedy: the most probable token; nothing is random.
      top_k: sample among the k most probable tokens; 0 is all.
      nucleus: sample among the fewest tokens (of those that `top_k` leaves) whose probability reaches `top_p`.
      choose_pad: let PAD be chosen.
      proposal: what may be chosen; None: any token.
    """
    if proposal is None:
        allowed = logits if choose_pad else without_pad(logits)
    else:
        allowed = jnp.where(proposal.is_dead[..., None], 0.0, proposal.weights)
    maximum = jnp.max(logits, axis=-1, keepdims=True)
    probabilities = jnp.exp(logits - maximum)  # not normalised
    log_normalizers = jnp.log(jnp.sum(probabilities, axis=-1)) + maximum[..., 0]
    if greedy:
        chosen = _first_maximum(allowed)
    else:
        of_positions = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)))(keys, positions)
        uniform = jax.vmap(jax.vmap(jax.random.uniform))(of_positions)
        chosen = _sample(
            uniform, allowed / temperature, top_k=top_k, top_p=top_p if nucleus else None
        )
    if proposal is None:
        log_probs = _entry(logits, chosen) - log_normalizers
        return Chosen(chosen, log_probs, log_probs)
    gains = _entry(allowed, chosen) - proposal.offsets
    if proposal.tokens is not None:
        chosen = _entry(proposal.tokens, chosen)
    return Chosen(chosen, _entry(logits, chosen) - log_normalizers, gains)


def of_tokens(values: AnyArray, tokens: AnyArray | None) -> AnyArray:
    """The entries of listed tokens in values of all; all if None is listed."""
    return values if tokens is None else jnp.take_along_axis(values, tokens, axis=-1)


def _entry(values: AnyArray, index: AnyArray) -> AnyArray:
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def _sample(
    uniform: SequenceValues, logits: SequenceLogits, *, top_k: int, top_p: AnyArray | None
) -> SequenceTokens:
    ids = None
    if top_k:
        logits, ids = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    if top_p is not None:
        probs = weights / jnp.sum(weights, axis=-1, keepdims=True)
        weights = jnp.where(nucleus_mask(probs, top_p), probs, 0.0)
    chosen = draw(uniform, weights)
    if ids is not None:
        chosen = jnp.take_along_axis(ids, chosen[..., None], axis=-1)[..., 0]
    return chosen.astype(jnp.int32)


def draw(uniform: SequenceValues, weights: SequenceLogits) -> SequenceTokens:
    """Draws an index with a probability in proportion to its weight: the inverse of the distribution function at `uniform`.

    First a block of indices is found and then the index in it, which takes two sums over a root of the number of indices instead of
    one over all. An index of weight 0 is never drawn, whatever rounding does to the sums.
    """
    count = weights.shape[-1]
    block = 1 << (count - 1).bit_length() // 2
    weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -count % block)])
    blocks = weights.reshape(*weights.shape[:-1], -1, block)
    block_weights = jnp.sum(blocks, axis=-1)
    target = uniform * jnp.sum(block_weights, axis=-1)
    index, before = _last_before(block_weights, target)
    inside = jnp.take_along_axis(blocks, index[..., None, None], axis=-2)[..., 0, :]
    offset, _ = _last_before(inside, target - before)
    return (index * block + offset).astype(jnp.int32)


def _last_before(weights: AnyArray, target: AnyArray) -> tuple[AnyArray, AnyArray]:
    """The last index of positive weight that has at most `target` before it, and the weight before it."""
    before = jnp.cumsum(weights, axis=-1)[..., :-1]
    before = jnp.pad(before, [(0, 0)] * (weights.ndim - 1) + [(1, 0)])
    reached = (weights > 0) & (before <= jnp.maximum(target, 0.0)[..., None])
    index = jnp.max(jnp.where(reached, jnp.arange(weights.shape[-1]), 0), axis=-1)
    return index, jnp.take_along_axis(before, index[..., None], axis=-1)[..., 0]


def nucleus_mask(probs: SequenceLogits, top_p: AnyArray) -> AnyArray:
    """True on the fewest most probable tokens whose probability reaches `top_p` (Holtzman et al. 2019, arXiv 1904.09751).

    Found by bisection of the smallest probability kept, over the bits of a float32, which is exact and much cheaper than
    sorting the vocabulary. Tokens equally probable with the last one kept are kept too.
    """
    bits = jax.lax.bitcast_convert_type(probs.astype(jnp.float32), jnp.int32)  # monotone for x >= 0

    def halve(_: Any, bounds: Any) -> Any:
        low, high = bounds  # low is a threshold that keeps enough, high + 1 one that does not
        middle = low + (high - low + 1) // 2
        mass = jnp.sum(jnp.where(bits >= middle, probs, 0.0), axis=-1, keepdims=True)
        enough = mass >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    bounds = (jnp.zeros_like(bits[..., :1]), jnp.max(bits, axis=-1, keepdims=True))
    threshold, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    return bits >= threshold


def without_pad(logits: SequenceLogits) -> SequenceLogits:
    """The logits with PAD impossible."""
    return jnp.where(jnp.arange(logits.shape[-1]) == PAD, -jnp.inf, logits)


def _first_maximum(logits: SequenceLogits) -> SequenceTokens:
    # Two plain reductions: on a CPU, XLA's argmax takes several times as long.
    is_maximum = logits == jnp.max(logits, axis=-1, keepdims=True)
    count = logits.shape[-1]
    index = jnp.min(jnp.where(is_maximum, jnp.arange(count), count), axis=-1)
    return jnp.minimum(index, count - 1).astype(jnp.int32)  # NaN equals nothing
