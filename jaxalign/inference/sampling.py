"""Generates a policy's responses to prompts within the process, for files, evaluation and checks during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxalign.data.batches import prompt_rows
from jaxalign.data.encoding import TextEncoder
from jaxalign.errors import UserError, require_range
from jaxalign.inference.rows import EOS, Tokens, bucket_length, chunks, decode_tokens


@dataclasses.dataclass(frozen=True)
class DecodingSettings:
    """The settings of decoding.

    Attributes:
      max_target_length: the maximum number of tokens of a response, EOS included.
      num_samples: the number of responses per prompt.
      temperature: 0 is greedy; 1 samples from the policy itself.
      top_k: sample only among the k most likely tokens; 0 turns this off.
      top_p: sample only among the most likely tokens with this total probability; 1 turns this off.
      num_beams: the number of beams of a beam search, whose best `num_samples` beams are returned; 0 turns this off.
      alpha: the length penalty of the beam search.
    """

    max_target_length: int
    num_samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 0
    alpha: float = 0.6

    def __post_init__(self) -> None:
        owner = "decoding"
        require_range(owner, "[1, inf)", max_target_length=self.max_target_length)
        require_range(owner, "[1, inf)", num_samples=self.num_samples)
        require_range(owner, "[0, inf)", temperature=self.temperature, top_k=self.top_k)
        require_range(owner, "(0, 1]", top_p=self.top_p)
        require_range(owner, "[0, inf)", num_beams=self.num_beams, alpha=self.alpha)
        if self.num_beams and self.temperature:
            raise UserError("beam search and sampling exclude each other: set temperature=0.")
        if self.num_beams and self.num_samples > self.num_beams:
            raise UserError(
                f"num_samples={self.num_samples} exceeds num_beams={self.num_beams}: "
                "ask for at most as many responses as there are beams."
            )
        if not self.num_beams and not self.temperature and self.num_samples > 1:
            raise UserError(
                f"num_samples={self.num_samples} at temperature 0 would repeat the greedy response: "
                "set temperature=1, or num_beams."
            )


def decoder(policy: Any, settings: DecodingSettings) -> Callable[..., Any]:
    """Returns a function (params, encoder tokens [rows, S], key) -> tokens and log-probabilities, best response first."""
    from jaxalign.networks import decoding

    def beam(params: Any, tokens: jax.Array, key: jax.Array) -> Any:
        del key
        found = decoding.beam_search(
            policy,
            params,
            tokens,
            num_beams=settings.num_beams,
            alpha=settings.alpha,
            max_decode_len=settings.max_target_length,
        )
        # T5X orders beams from worst to best.
        return found.tokens[:, ::-1], found.log_probs[:, ::-1]

    def sample(params: Any, tokens: jax.Array, key: jax.Array) -> Any:
        found = decoding.generate(
            policy,
            params,
            tokens,
            max_decode_len=settings.max_target_length,
            rng=key,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            num_samples=settings.num_samples,
        )
        return found.tokens, found.log_probs

    return beam if settings.num_beams else sample


def generate_batches(
    policy: Any,
    params: Any,
    prompts: Sequence[Tokens],
    settings: DecodingSettings,
    *,
    batch_size: int = 32,
    seed: int = 0,
    first_batch: int = 0,
) -> Iterator[
    tuple[slice, Int[np.ndarray, "rows samples length"], Float[np.ndarray, "rows samples"]]
]:
    """Decodes all batches in order.

    Batch b always consists of the prompts [b * batch_size, (b + 1) * batch_size), padded to a length
    that depends only on those prompts, with the key fold_in(seed, b). Therefore a run that starts at
    `first_batch` returns exactly the responses of an uninterrupted run.

    Yields:
      The slice of prompts, their response tokens (EOS, then padding) and log-probabilities under the
      policy at temperature 1 (nats, sums).
    """
    decode = decoder(policy, settings)
    for number, part in enumerate(chunks(len(prompts), batch_size)):
        if number < first_batch:
            continue
        rows = list(prompts[part])
        count = len(rows)
        rows += [[EOS]] * (batch_size - count)
        longest = max(map(len, rows))
        length = bucket_length(longest, 2 * longest)
        key = jax.random.fold_in(jax.random.key(seed), number)
        tokens, log_probs = decode(params, prompt_rows(rows, length), key)
        keep = settings.num_samples
        yield part, np.asarray(tokens)[:count, :keep], np.asarray(log_probs)[:count, :keep]


def generate_tokens(
    policy: Any,
    params: Any,
    prompts: Sequence[Tokens],
    settings: DecodingSettings,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[Int[np.ndarray, "prompts samples length"], Float[np.ndarray, "prompts samples"]]:
    """Returns the results of all batches of `generate_batches` together."""
    parts = list(
        generate_batches(policy, params, prompts, settings, batch_size=batch_size, seed=seed)
    )
    if not parts:
        shape = (0, settings.num_samples)
        return np.zeros((*shape, settings.max_target_length), np.int32), np.zeros(shape, np.float32)
    return np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts])


def generate_responses(
    policy: Any,
    params: Any,
    encoder: TextEncoder,
    prompts: Sequence[str],
    settings: DecodingSettings,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[list[list[str]], Float[np.ndarray, "prompts samples"]]:
    """Returns the texts of a policy's responses, for use inside a program.

    Args:
      policy, params: a policy and its parameters.
      encoder: the encoder of the run, from `jaxalign.inference.encoders.encoder_of`.
      prompts: the texts of the prompts.
      settings: the decoding settings.
      batch_size, seed: as in `generate_batches`.

    Returns:
      [prompts][num_samples] texts and their log-probabilities under the untempered policy, in nats.
    """
    tokens, log_probs = generate_tokens(
        policy,
        params,
        encoder.prompts(prompts).tokens,
        settings,
        batch_size=batch_size,
        seed=seed,
    )
    return [
        [decode_tokens(encoder.vocabulary, row) for row in group] for group in tokens
    ], log_probs
