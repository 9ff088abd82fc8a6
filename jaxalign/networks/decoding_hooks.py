"""The hooks of decoding together: which tokens are allowed, what is added to their scores, and the candidates that come of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.networks.allowed_tokens import machine, static
from jaxalign.networks.decoding_scores import Candidates, Place
from jaxalign.networks.shapes import AnyArray
from jaxalign.networks.token_choice import PAD, Proposal, of_tokens


@machine
class Hooks:
    """What decoding obeys. Without `allowed` and `score` it follows the policy alone.

    The score of a response is the sum over its tokens of the log-probability and of ``weight * number`` of `score`. Beam search ranks by
    it. Samples are drawn from the softmax of it over the allowed candidates, divided by the temperature; top-k and top-p apply to this
    distribution. The returned log-probabilities stay those of the policy over its whole vocabulary.

    Attributes:
      allowed: the tokens that may come next, an `allowed_tokens.AllowedTokens`.
      score: a `decoding_scores.DecodingScore`.
      renormalize: the score counts the probability of a token among the allowed ones, so that a forced token adds 0, and the scores of all
        allowed responses are a distribution. Without it the score counts the policy's own probability. Greedy responses and
        samples do not depend on it, only their scores; the ranking of beams does.
    """

    allowed: Any = None
    score: Any = None
    renormalize: bool = static(default=False)

    @property
    def is_empty(self) -> bool:
        """Whether decoding follows the policy alone."""
        return self.allowed is None and self.score is None

    def check(self, policy: Any, prompts: Any, max_decode_len: int) -> None:
        """Raises `UserError` if a hook does not fit, or nothing is allowed at the beginning of a response.

        Args:
          policy: the network.
          prompts: the numbers of the prompts, on the host.
          max_decode_len: tokens after which a response is cut.
        """
        if self.score is not None:
            self.score.check(policy.vocab_size)
        if self.allowed is None:
            return
        self.allowed.check(policy.vocab_size, max_decode_len)
        begins = _may_begin(self.allowed, jnp.asarray(prompts), policy.vocab_size, max_decode_len)
        if not bool(jnp.all(begins)):
            number = int(jnp.asarray(prompts)[jnp.argmin(begins)])
            raise UserError(
                f"the allowed tokens leave no first token for prompt {number}; loosen the trie, forced prefix, bans or minimum length"
            )


NO_HOOKS = Hooks()


class HookStates(NamedTuple):
    """What the hooks know of the sequences."""

    allowed: Any  # [rows, sequences, ...]
    caches: Any  # of the score's networks


def start(
    hooks: Hooks,
    prompts: AnyArray,
    *,
    num_sequences: int,
    max_decode_len: int,
    num_groups: int,
    num_slots: int,
) -> HookStates:
    """The states before the first token.

    Args:
      hooks: the hooks.
      prompts: the number of each row's prompt, ``[rows]``.
      num_sequences: of a row.
      max_decode_len: tokens after which a response is cut.
      num_groups, num_slots: of the policy's cache.
    """
    rows = prompts.shape[0]
    caches: Any = ()
    if hooks.score is not None:
        caches = hooks.score.empty_caches(num_groups, num_slots, rows * num_sequences // num_groups)
    return HookStates(start_allowed(hooks, prompts, num_sequences, max_decode_len), caches)


def start_allowed(hooks: Hooks, prompts: AnyArray, num_sequences: int, max_decode_len: int) -> Any:
    """The states of the allowed tokens alone, of all sequences of each row."""
    if hooks.allowed is None:
        return ()
    prompts = jnp.broadcast_to(prompts[:, None], (prompts.shape[0], num_sequences))
    return hooks.allowed.start(prompts, max_decode_len)


def read_prompts(hooks: Hooks, tokens: AnyArray, max_decode_len: int) -> tuple[Any, ...]:
    """What the score's networks read of the prompts."""
    return () if hooks.score is None else hooks.score.read_prompts(tokens, max_decode_len)


def propose(
    hooks: Hooks,
    states: HookStates,
    prompts: tuple[Any, ...],
    logits: AnyArray,
    last: AnyArray,
    place: Place,
    *,
    choose_pad: bool = False,
) -> tuple[Proposal | None, HookStates]:
    """The candidates after `last`, from the policy's logits, and the states with the new caches; no proposal without hooks."""
    if hooks.is_empty:
        return None, states
    vocab_size = logits.shape[-1]
    tokens, valid = None, jnp.ones(vocab_size, bool)
    if hooks.allowed is not None:
        listed = hooks.allowed.listed(states.allowed, vocab_size)
        if listed is None:
            valid = hooks.allowed.allowed(states.allowed, vocab_size)
        else:
            tokens, valid = listed
    values = of_tokens(logits, tokens)
    if not choose_pad:
        valid &= (jnp.arange(vocab_size) if tokens is None else tokens) != PAD
    values = jnp.where(valid, values, -jnp.inf)
    is_dead = jnp.broadcast_to(~jnp.any(valid, axis=-1), logits.shape[:-1])
    log_normalizers = jax.nn.logsumexp(logits, axis=-1)
    offsets = jax.nn.logsumexp(values, axis=-1) if hooks.renormalize else log_normalizers
    offsets = jnp.where(is_dead, 0.0, offsets)
    caches = states.caches
    if hooks.score is not None:
        count = hooks.score.limit()
        if count is not None and count < values.shape[-1]:
            values, index = jax.lax.top_k(values, count)
            tokens = index if tokens is None else jnp.take_along_axis(tokens, index, axis=-1)
        candidates = Candidates(logits - log_normalizers[..., None], tokens)
        numbers, caches = hooks.score.scores(prompts, caches, last, place, candidates)
        values = jnp.where(values > -jnp.inf, values + hooks.score.weight * numbers, -jnp.inf)
    return Proposal(tokens, values, offsets, is_dead), HookStates(states.allowed, caches)


def advance(hooks: Hooks, states: HookStates, tokens: AnyArray) -> HookStates:
    """The states after one more token of every sequence; the caches get it in the next step."""
    if hooks.allowed is None:
        return states
    return states._replace(allowed=hooks.allowed.advance(states.allowed, tokens))


def ended(finished: AnyArray, proposal: Proposal | None) -> AnyArray:
    """Which sequences get no further token: those that have ended, or after which nothing is allowed."""
    return finished if proposal is None else finished | proposal.is_dead


@jax.jit(static_argnames=("vocab_size", "max_decode_len"))
def _may_begin(allowed: Any, prompts: Any, vocab_size: int, max_decode_len: int) -> Any:
    mask = allowed.allowed(allowed.start(prompts, max_decode_len), vocab_size)
    return jnp.any(mask & (jnp.arange(vocab_size) != PAD), axis=-1)
