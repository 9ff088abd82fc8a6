"""Responses from a policy: greedy, sampled, or by beam search. Compiled once per shape; decoding stops when every row has ended."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PRNGKeyArray

from jaxalign.errors import UserError
from jaxalign.networks.incremental import SequenceLogits, SequenceTokens
from jaxalign.networks.protocols import DecodingPolicy
from jaxalign.networks.shapes import AnyArray, Params

PAD, EOS = 0, 1
EMPTY = -1e7  # score of an empty beam, as in T5X

PromptTokens = Int[AnyArray, "rows source"]
SampleTokens = Int[AnyArray, "rows samples length"]
SampleValues = Float[AnyArray, "rows samples"]


class Generations(NamedTuple):
    """Decoded responses.

    Attributes:
      tokens: int32, each response followed by EOS and then PAD; without EOS if it was cut at the maximal length.
      log_probs: log-probability of the response including its EOS, in nats, under the policy itself: temperature, top-k and
        top-p change the sampled response, not this number.
      scores: the ranking of beam search; None for samples.
    """

    tokens: SampleTokens
    log_probs: SampleValues
    scores: SampleValues | None = None


def generate(
    policy: DecodingPolicy,
    params: Params,
    encoder_input_tokens: PromptTokens,
    *,
    max_decode_len: int,
    rng: PRNGKeyArray | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_samples: int = 1,
    choose_pad: bool = False,
) -> Generations:
    """Greedy responses, or samples.

    Args:
      policy: the network.
      params: its parameters.
      encoder_input_tokens: one prompt per row, ending in EOS, then PAD. It is encoded once for all its samples.
      max_decode_len: tokens, EOS included, after which a response is cut.
      rng: key of the random choices; needed unless `temperature` is 0.
      temperature: divides the logits before filtering; 0 is greedy.
      top_k: sample among the k most probable tokens; 0 is all.
      top_p: sample among the fewest most probable tokens (of those that `top_k` leaves) whose probability reaches this.
      num_samples: responses per prompt.
      choose_pad: let a response contain PAD, as T5X and transformers do. An untrained model may then answer with PAD only, and
        scoring a response, which takes PAD for its end, need not give the returned log-probability again.

    Raises:
      UserError: temperature, top_k or top_p out of range.
      ValueError: another argument is out of range, or sampling was asked for without `rng`.
    """
    _require_positive("max_decode_len", max_decode_len)
    _require_positive("num_samples", num_samples)
    if temperature < 0 or not 0 < top_p <= 1 or not 0 <= top_k <= policy.vocab_size:
        raise UserError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: temperature must not be negative, top_k must be in "
            f"[0, {policy.vocab_size}] and top_p in (0, 1]."
        )
    greedy = temperature == 0
    if greedy and num_samples > 1:
        raise ValueError(
            f"num_samples={num_samples} at temperature 0 would repeat one response; set a temperature."
        )
    if rng is None:
        if not greedy:
            raise ValueError("Sampling (temperature > 0) needs rng, a jax.random.key.")
        rng = jax.random.key(0)
    return _generate(
        policy,
        params,
        jnp.asarray(encoder_input_tokens),
        rng,
        jnp.float32(temperature),
        jnp.float32(top_p),
        max_decode_len=max_decode_len,
        greedy=greedy,
        top_k=top_k,
        nucleus=top_p < 1,
        num_samples=num_samples,
        choose_pad=choose_pad,
    )


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
    _require_positive("max_decode_len", max_decode_len)
    _require_positive("num_beams", num_beams)
    return _beam_search(
        policy,
        params,
        jnp.asarray(encoder_input_tokens),
        jnp.float32(alpha),
        num_beams=num_beams,
        max_decode_len=max_decode_len,
    )


class _Samples(NamedTuple):
    position: AnyArray
    last: AnyArray  # [rows, samples]
    finished: AnyArray  # [rows, samples]
    log_probs: AnyArray  # [rows, samples]
    tokens: AnyArray  # [rows, samples, length]
    cache: Any


@functools.partial(
    jax.jit,
    static_argnames=(
        "policy",
        "max_decode_len",
        "greedy",
        "top_k",
        "nucleus",
        "num_samples",
        "choose_pad",
    ),
)
def _generate(
    policy: Any,
    params: Any,
    encoder_input_tokens: Any,
    rng: Any,
    temperature: Any,
    top_p: Any,
    *,
    max_decode_len: Any,
    greedy: Any,
    top_k: Any,
    nucleus: Any,
    num_samples: Any,
    choose_pad: Any,
) -> Generations:
    rows = encoder_input_tokens.shape[0]
    prompt = policy.read_prompts(params, encoder_input_tokens, max_decode_len)

    def not_ended(state: _Samples) -> AnyArray:
        return (state.position < max_decode_len) & ~jnp.all(state.finished)

    def extend(state: _Samples) -> _Samples:
        logits, cache = policy.next_logits(prompt, state.cache, state.last, state.position)
        log_normalizers = jax.nn.logsumexp(logits, axis=-1)
        allowed = logits if choose_pad else _without_pad(logits)
        if greedy:
            chosen: AnyArray = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
        else:
            key = jax.random.fold_in(rng, state.position)
            chosen = _sample(key, allowed / temperature, top_k, top_p if nucleus else None)
        chosen = jnp.where(state.finished, PAD, chosen)
        log_probs = jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
        log_probs = jnp.where(state.finished, 0.0, log_probs - log_normalizers)
        return _Samples(
            state.position + 1,
            chosen,
            state.finished | (chosen == EOS),
            state.log_probs + log_probs,
            jax.lax.dynamic_update_index_in_dim(state.tokens, chosen, state.position, axis=2),
            cache,
        )

    shape = (rows, num_samples)
    state = _Samples(
        jnp.int32(0),
        jnp.full(shape, PAD, jnp.int32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, jnp.float32),
        jnp.full((*shape, max_decode_len), PAD, jnp.int32),
        policy.empty_cache(rows * num_samples, max_decode_len),
    )
    state = jax.lax.while_loop(not_ended, extend, state)
    return Generations(state.tokens, state.log_probs)


def _sample(key: Any, logits: SequenceLogits, top_k: int, top_p: AnyArray | None) -> SequenceTokens:
    ids = None
    if top_k:
        logits, ids = jax.lax.top_k(logits, top_k)
    if top_p is not None:
        logits = jnp.where(nucleus_mask(jax.nn.softmax(logits, axis=-1), top_p), logits, -jnp.inf)
    chosen = jax.random.categorical(key, logits, axis=-1)
    if ids is not None:
        chosen = jnp.take_along_axis(ids, chosen[..., None], axis=-1)[..., 0]
    return chosen.astype(jnp.int32)


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
        log_probs = _without_pad(jax.nn.log_softmax(logits)) + state.log_probs[..., None]

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


def _without_pad(logits: SequenceLogits) -> SequenceLogits:
    return jnp.where(jnp.arange(logits.shape[-1]) == PAD, -jnp.inf, logits)


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1.")
