"""Samples from the mean logits of passes with dropout, the second phase of SA2's self-augmentation (arXiv 2205.09661).

The passes are T networks with fixed dropout masks: a pass has one key for the whole response. The mean of the logits is, up to
normalisation, the log of the geometric mean of the T distributions; it is not the mean of the probabilities.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.data.batches import prompt_rows
from jaxalign.data.encoding import TextEncoder
from jaxalign.errors import UserError, require_range
from jaxalign.inference.rows import EOS, PAD, bucket_length, chunks, decode_tokens
from jaxalign.networks import distributions
from jaxalign.networks.token_choice import choose, sequence_keys


class _State(NamedTuple):
    position: Any
    tokens: Any  # [rows, length]
    finished: Any  # [rows]


@functools.partial(jax.jit, static_argnames=("policy", "max_decode_len"))
def mc_mean_logits_decode(
    policy: Any,
    params: Any,
    encoder_input_tokens: Any,
    keys: Any,
    sequence_keys: Any,
    *,
    top_p: Any,
    temperature: Any = 1.0,
    max_decode_len: int,
) -> Any:
    """Returns one sampled response per row, [rows, max_decode_len] int32: tokens, EOS, then PAD.

    The decoder reads the whole response again at every position, because incremental decoding has no dropout. So the cost grows with
    the square of the length, and with the number of passes.

    Args:
      policy: a T5 policy; without dropout all passes are the same.
      params: its parameters.
      encoder_input_tokens: one prompt per row, ending in EOS, then PAD.
      keys: one key of dropout for each pass.
      sequence_keys: one key for each row, which the choice of its tokens depends on.
      top_p: sample among the fewest tokens whose probability under the mean logits reaches this.
      temperature: divides the mean logits.
      max_decode_len: tokens, EOS included, after which a response is cut.
    """
    tokens = jnp.asarray(encoder_input_tokens)
    rows = tokens.shape[0]
    prompts = {
        "encoder_input_tokens": tokens,
        "encoder_segment_ids": (tokens > 0).astype(jnp.int32),
    }
    of_encoder, of_decoder = jnp.swapaxes(jax.vmap(jax.random.split)(keys), 0, 1)
    encoded = jax.lax.map(
        lambda key: policy.encode_for_decoder(params, prompts, rng=key), of_encoder
    )

    def mean_logits(written: Any, position: Any) -> Any:
        batch = {
            **prompts,
            "decoder_input_tokens": jnp.pad(written, [(0, 0), (1, 0)])[:, :-1],
            "decoder_target_tokens": written,
            # Later positions are not seen, because attention is causal.
            "decoder_segment_ids": jnp.ones_like(written),
            "response_mask": jnp.ones((rows, 1, 1), bool),
        }

        def of_pass(key_and_states: Any) -> Any:
            key, states = key_and_states
            hidden = policy.decode(params, batch, rng=key, encoded=states)
            here = jax.lax.dynamic_slice_in_dim(hidden, position, 1, axis=1)
            return distributions.project(policy.distributions(params, here))

        return jnp.mean(jax.lax.map(of_pass, (of_decoder, encoded)), axis=0)

    def extend(state: _State) -> _State:
        logits = mean_logits(state.tokens, state.position)
        chosen = choose(
            logits,
            sequence_keys[:, None],
            jnp.full((rows,), state.position),
            jnp.float32(temperature),
            jnp.float32(top_p),
            greedy=False,
            top_k=0,
            nucleus=True,
        ).tokens
        chosen = jnp.where(state.finished, PAD, chosen[:, 0])
        return _State(
            state.position + 1,
            jax.lax.dynamic_update_index_in_dim(state.tokens, chosen, state.position, axis=1),
            state.finished | (chosen == EOS),
        )

    def not_ended(state: _State) -> Any:
        return (state.position < max_decode_len) & ~jnp.all(state.finished)

    start = _State(
        jnp.int32(0), jnp.full((rows, max_decode_len), PAD, jnp.int32), jnp.zeros(rows, bool)
    )
    return jax.lax.while_loop(not_ended, extend, start).tokens


def ensemble_responses(
    policy: Any,
    params: Any,
    encoder: TextEncoder,
    prompts: Sequence[str],
    *,
    passes: int = 10,
    top_p: float = 0.9,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
) -> list[str]:
    """Returns one response to each prompt, sampled from the mean logits of passes with dropout.

    Args:
      policy, params: a T5 policy and its parameters.
      encoder: the encoder of the run, from `jaxalign.inference.encoders.encoder_of`.
      prompts: the texts of the prompts.
      passes: T, the number of passes.
      top_p, temperature: see `mc_mean_logits_decode`.
      batch_size: the number of prompts that are decoded together.
      seed: of the dropout masks and of the samples.

    Raises:
      UserError: a setting is out of range, or the policy has no dropout.
    """
    owner = "ensemble_responses"
    require_range(owner, "[1, inf)", passes=passes, batch_size=batch_size)
    require_range(owner, "(0, 1]", top_p=top_p)
    require_range(owner, "(0, inf)", temperature=temperature)
    require_range(owner, "[0, inf)", seed=seed)
    if not policy.dropout_rate:
        raise UserError(
            "ensemble_responses: the policy has no dropout, so that all passes agree; give it a dropout_rate"
        )
    tokens = encoder.prompts(prompts).tokens
    # Keys of this kind compile several times faster where dropout uses them.
    dropout_root = jax.random.key(seed, impl="rbg")
    responses: list[str] = []
    for number, part in enumerate(chunks(len(tokens), batch_size)):
        rows = list(tokens[part])
        longest = max(map(len, rows))
        padded = rows + [[EOS]] * (batch_size - len(rows))
        numbers = jnp.arange(part.start, part.start + batch_size)
        found = mc_mean_logits_decode(
            policy,
            params,
            prompt_rows(padded, bucket_length(longest, 2 * longest)),
            jax.random.split(jax.random.fold_in(dropout_root, number), passes),
            sequence_keys(jax.random.key(seed), numbers, 1)[:, 0],
            top_p=top_p,
            temperature=temperature,
            max_decode_len=encoder.limits.max_target_length,
        )
        responses += [decode_tokens(encoder.vocabulary, row) for row in found[: len(rows)]]
    return responses
