"""Greedy and sampled responses of one batch of prompts. Compiled once per shape; decoding stops when every row has ended.

This is the plain decoder. `networks.decoding_rows` decodes many prompts, in place of rows that have ended.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from jaxalign.errors import UserError
from jaxalign.networks import decoding_hooks
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks, HookStates
from jaxalign.networks.decoding_scores import AtPosition
from jaxalign.networks.protocols import DecodingPolicy
from jaxalign.networks.shapes import AnyArray, Params
from jaxalign.networks.token_choice import EOS, PAD, choose, sequence_keys

NUM_SIZES, SMALLEST_SIZE = 3, 16  # of caches, in positions

PromptTokens = Int[AnyArray, "rows source"]
SampleTokens = Int[AnyArray, "rows samples length"]
SampleValues = Float[AnyArray, "rows samples"]
DeadEnds = Bool[AnyArray, "rows samples"]


class Generations(NamedTuple):
    """Decoded responses.

    Attributes:
      tokens: int32, each response followed by EOS and then PAD; without EOS if it was cut at the maximal length.
      log_probs: log-probability of the response including its EOS, in nats, under the policy itself: temperature, top-k and
        top-p change the sampled response, not this number.
      scores: the ranking of beam search; for greedy responses and samples what `decoding_hooks.Hooks` defines, None without hooks.
      dead_ends: whether a response was cut because the hooks allowed no token after it, in beam search whether this happened to all
        beams of a prompt before one had ended (all of them are empty then); None without hooks.
    """

    tokens: SampleTokens
    log_probs: SampleValues
    scores: SampleValues | None = None
    dead_ends: DeadEnds | None = None


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
    hooks: Hooks = NO_HOOKS,
    prompt_numbers: AnyArray | None = None,
) -> Generations:
    """Greedy responses, or samples.

    Args:
      policy: the network.
      params: its parameters.
      encoder_input_tokens: one prompt per row, ending in EOS, then PAD. It is encoded once for all its samples.
      max_decode_len: tokens, EOS included, after which a response is cut.
      rng: key of the random choices; needed unless `temperature` is 0. Sample k of row r uses fold_in(fold_in(rng, r), k).
      temperature: divides the logits before filtering; 0 is greedy.
      top_k: sample among the k most probable tokens; 0 is all.
      top_p: sample among the fewest most probable tokens (of those that `top_k` leaves) whose probability reaches this.
      num_samples: responses per prompt.
      choose_pad: let a response contain PAD, as T5X and transformers do. An untrained model may then answer with PAD only, and
        scoring a response, which takes PAD for its end, need not give the returned log-probability again.
      hooks: which tokens are allowed, and what is added to their scores. A response after which nothing is allowed ends without EOS.
      prompt_numbers: the numbers ``[rows]`` of the prompts that hooks speak of; by default those of the rows.

    Raises:
      UserError: temperature, top_k or top_p out of range, or a hook does not fit.
      ValueError: another argument is out of range, or sampling was asked for without `rng`.
    """
    require_positive("max_decode_len", max_decode_len)
    require_positive("num_samples", num_samples)
    check_choice(policy, temperature, top_k, top_p)
    greedy = temperature == 0
    if greedy and num_samples > 1:
        raise ValueError(
            f"num_samples={num_samples} at temperature 0 would repeat one response; set a temperature."
        )
    if rng is None:
        if not greedy:
            raise ValueError("Sampling (temperature > 0) needs rng, a jax.random.key.")
        rng = jax.random.key(0)
    prompt_numbers = numbers_of(encoder_input_tokens, prompt_numbers)
    hooks.check(policy, prompt_numbers, max_decode_len)
    return _generate(
        policy,
        params,
        jnp.asarray(encoder_input_tokens),
        rng,
        jnp.float32(temperature),
        jnp.float32(top_p),
        hooks,
        prompt_numbers,
        max_decode_len=max_decode_len,
        greedy=greedy,
        top_k=top_k,
        nucleus=top_p < 1,
        num_samples=num_samples,
        choose_pad=choose_pad,
    )


def check_choice(policy: DecodingPolicy, temperature: float, top_k: int, top_p: float) -> None:
    """Raises `UserError` if temperature, top_k or top_p is out of range."""
    if temperature < 0 or not 0 < top_p <= 1 or not 0 <= top_k <= policy.vocab_size:
        raise UserError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: temperature must not be negative, top_k must be in "
            f"[0, {policy.vocab_size}] and top_p in (0, 1]."
        )


def numbers_of(tokens: AnyArray, prompt_numbers: AnyArray | None) -> AnyArray:
    """The numbers of prompts, by default those of their rows."""
    return np.arange(len(tokens)) if prompt_numbers is None else np.asarray(prompt_numbers)


def require_positive(name: str, value: int) -> None:
    """Raises ValueError if a number is below 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1.")


def cache_sizes(max_decode_len: int) -> tuple[int, ...]:
    """The positions for which a cache has room, one after another: a quarter, a half and all of them, but not less than 16.

    Self-attention reads the whole cache, so it is kept near to what is filled. Each size is one more loop in the program.
    """
    sizes = [max_decode_len]
    while len(sizes) < NUM_SIZES and sizes[0] >= 2 * SMALLEST_SIZE:
        sizes.insert(0, (sizes[0] + 1) // 2)
    return tuple(sizes)


def decode_in_segments(
    not_ended: Callable[[Any], AnyArray],
    extend: Callable[[Any], Any],
    state: Any,
    sizes: Sequence[int],
    *,
    group_size: int,
) -> Any:
    """Decodes with a cache that grows.

    Args:
      not_ended: whether a state needs another token.
      extend: the state after another token.
      state: a tuple with the fields `position`, `cache` and `hooked`; its caches have the first of the sizes.
      sizes: from `cache_sizes`.
      group_size: the sequences that share slots.
    """
    for before, size in zip((sizes[0], *sizes), sizes, strict=False):
        new = (size - before) * group_size

        def grown(leaf: AnyArray, new: int = new) -> AnyArray:
            return jnp.pad(leaf, [(0, new if axis == 2 else 0) for axis in range(leaf.ndim)])

        def goes_on(state: Any, size: int = size) -> AnyArray:
            return (state.position < size) & not_ended(state)

        if new:
            caches = jax.tree.map(grown, state.hooked.caches)
            state = state._replace(
                cache=jax.tree.map(grown, state.cache),
                hooked=state.hooked._replace(caches=caches),
            )
        state = jax.lax.while_loop(goes_on, extend, state)
    return state


class _Samples(NamedTuple):
    position: AnyArray
    last: AnyArray  # [rows, samples]
    finished: AnyArray  # [rows, samples]
    log_probs: AnyArray  # [rows, samples]
    tokens: AnyArray  # [rows, samples, length]
    cache: Any
    scores: AnyArray  # [rows, samples]
    dead_ends: AnyArray  # [rows, samples]
    hooked: HookStates


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
    hooks: Any,
    prompt_numbers: Any,
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
    hook_prompts = decoding_hooks.read_prompts(hooks, encoder_input_tokens, max_decode_len)
    keys = sequence_keys(rng, jnp.arange(rows), num_samples)

    def not_ended(state: _Samples) -> AnyArray:
        return ~jnp.all(state.finished)

    def extend(state: _Samples) -> _Samples:
        logits, cache = policy.next_logits(prompt, state.cache, state.last, state.position)
        proposal, hooked = decoding_hooks.propose(
            hooks,
            state.hooked,
            hook_prompts,
            logits,
            state.last,
            AtPosition(state.position),
            choose_pad=choose_pad,
        )
        found = choose(
            logits,
            keys,
            jnp.broadcast_to(state.position, (rows,)),
            temperature,
            top_p,
            greedy=greedy,
            top_k=top_k,
            nucleus=nucleus,
            choose_pad=choose_pad,
            proposal=proposal,
        )
        ended = decoding_hooks.ended(state.finished, proposal)
        chosen = jnp.where(ended, PAD, found.tokens)
        return _Samples(
            state.position + 1,
            chosen,
            ended | (chosen == EOS),
            state.log_probs + jnp.where(ended, 0.0, found.log_probs),
            jax.lax.dynamic_update_index_in_dim(state.tokens, chosen, state.position, axis=2),
            cache,
            state.scores + jnp.where(ended, 0.0, found.gains),
            state.dead_ends | (ended & ~state.finished),
            decoding_hooks.advance(hooks, hooked, chosen),
        )

    shape = (rows, num_samples)
    sizes = cache_sizes(max_decode_len)
    state = _Samples(
        jnp.int32(0),
        jnp.full(shape, PAD, jnp.int32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, jnp.float32),
        jnp.full((*shape, max_decode_len), PAD, jnp.int32),
        policy.empty_cache(rows * num_samples, sizes[0]),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, bool),
        decoding_hooks.start(
            hooks,
            prompt_numbers,
            num_sequences=num_samples,
            max_decode_len=max_decode_len,
            num_groups=rows * num_samples,
            num_slots=sizes[0],
        ),
    )
    state = decode_in_segments(not_ended, extend, state, sizes, group_size=1)
    if hooks.is_empty:
        return Generations(state.tokens, state.log_probs)
    return Generations(state.tokens, state.log_probs, state.scores, state.dead_ends)
