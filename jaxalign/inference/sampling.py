"""Generates a policy's responses to prompts within the process, for files, evaluation and checks during training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxalign.data.batches import prompt_rows
from jaxalign.data.encoding import TextEncoder
from jaxalign.errors import UserError, require_range
from jaxalign.inference import continuous_batching, cpu_threads
from jaxalign.inference.constraints import check_prefix, constrained
from jaxalign.inference.image_prompts import PromptImages, with_table
from jaxalign.inference.rows import EOS, Tokens, bucket_length, chunks, decode_tokens
from jaxalign.networks.beam_search import beam_search
from jaxalign.networks.decoding import check_choice
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks
from jaxalign.parallel.progress import progress
from jaxalign.parallel.row_devices import RowDevices

WINDOW = 16  # batches of prompts that are decoded together, and then returned
FILLS = 4  # how often a group of prompts of similar length fills the rows, at least


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
      min_target_length: the least number of tokens of a response, EOS included.
      no_repeat_ngram: no sequence of so many tokens occurs twice in a response; 0 turns this off.
      forced_prefix: tokens with which every response begins.
      bad_words: sequences of tokens that occur in no response.
    """

    max_target_length: int
    num_samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 0
    alpha: float = 0.6
    min_target_length: int = 0
    no_repeat_ngram: int = 0
    forced_prefix: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        owner = "decoding"
        require_range(owner, "[1, inf)", max_target_length=self.max_target_length)
        require_range(owner, "[1, inf)", num_samples=self.num_samples)
        require_range(owner, "[0, inf)", temperature=self.temperature, top_k=self.top_k)
        require_range(owner, "(0, 1]", top_p=self.top_p)
        require_range(owner, "[0, inf)", num_beams=self.num_beams, alpha=self.alpha)
        longest = f"[0, {self.max_target_length}]"
        require_range(owner, longest, no_repeat_ngram=self.no_repeat_ngram)
        require_range(owner, longest, min_target_length=self.min_target_length)
        check_prefix(
            self.forced_prefix, self.bad_words, self.no_repeat_ngram, self.max_target_length
        )
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


def decoder(
    policy: Any, settings: DecodingSettings, batch_size: int, hooks: Hooks = NO_HOOKS
) -> Callable[..., Any]:
    """Returns a function (params, prompts, indices, key) -> tokens and log-probabilities of the prompts, best response first.

    Responses obey the settings and the `hooks`. Greedy responses and samples are decoded by `inference.continuous_batching`, beam search
    in batches. Both take prompts of similar length together.
    """
    length = settings.max_target_length
    hooks = constrained(
        hooks,
        min_target_length=settings.min_target_length,
        no_repeat_ngram=settings.no_repeat_ngram,
        prefix=settings.forced_prefix,
        bad_words=settings.bad_words,
    )

    programs = (policy, settings, jax.tree.structure(hooks))

    def beam(params: Any, prompts: Sequence[Tokens], indices: Any, key: Any) -> Any:
        del key
        tokens = np.zeros((len(prompts), settings.num_samples, length), np.int32)
        log_probs = np.zeros(tokens.shape[:2], np.float32)
        devices = RowDevices(params)
        rows = devices.multiple(num_rows(-(-len(prompts) // cpu_threads.count()), batch_size))
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")

        def search(index: np.ndarray, input_length: int) -> None:
            batch = [prompts[i] for i in index] + [[EOS]] * (rows - len(index))
            with devices.active():
                found = beam_search(
                    policy,
                    params,
                    devices.put(prompt_rows(batch, input_length)),
                    num_beams=settings.num_beams,
                    alpha=settings.alpha,
                    max_decode_len=length,
                    hooks=hooks,
                    prompt_numbers=np.pad(indices[index], (0, rows - len(index)), mode="edge"),
                )
            # T5X orders beams from worst to best.
            best_first = slice(None, -settings.num_samples - 1, -1)
            tokens[index] = np.asarray(found.tokens)[: len(index), best_first]
            log_probs[index] = np.asarray(found.log_probs)[: len(index), best_first]

        def parts() -> Iterator[cpu_threads.Work]:
            for part in chunks(len(order), rows):
                index = order[part]
                input_length = _padded_length(max(len(prompts[i]) for i in index))
                shape = (*programs, rows, input_length)
                yield shape, functools.partial(search, index, input_length)

        cpu_threads.run(parts())
        return tokens, log_probs

    def sample(params: Any, prompts: Sequence[Tokens], indices: Any, key: Any) -> Any:
        check_choice(policy, settings.temperature, settings.top_k, settings.top_p)
        tokens = np.zeros((len(prompts), settings.num_samples, length), np.int32)
        log_probs = np.zeros(tokens.shape[:2], np.float32)
        choice = continuous_batching.Choice(settings.temperature, settings.top_k, settings.top_p)
        count = cpu_threads.count()
        rows = num_rows(-(-len(prompts) // count), batch_size)

        def decode(index: np.ndarray, input_length: int) -> None:
            tokens[index], log_probs[index] = continuous_batching.decode_prompts(
                policy,
                params,
                [prompts[i] for i in index],
                indices[index],
                continuous_batching.Shapes(rows, settings.num_samples, input_length, length),
                choice,
                key,
                hooks,
            )

        def parts() -> Iterator[cpu_threads.Work]:
            for input_length, index in by_length([len(prompt) for prompt in prompts], rows):
                shape = (*programs, rows, input_length)
                for first in range(min(count, len(index))):
                    yield shape, functools.partial(decode, index[first::count], input_length)

        cpu_threads.run(parts())
        return tokens, log_probs

    return beam if settings.num_beams else sample


def by_length(
    lengths: Sequence[int], num_rows: int
) -> Iterator[tuple[int, Int[np.ndarray, " group"]]]:
    """Yields groups of prompts, the longest first, each with the length to which its prompts are padded.

    A group's last rows run with idle rows beside them, so that a group of few prompts costs more than padding: prompts join those of
    the next longer group until it fills the rows several times.
    """
    order = np.argsort([-length for length in lengths], kind="stable")
    padded = np.array([_padded_length(lengths[index]) for index in order])
    start = 0
    for stop in range(1, len(order) + 1):
        rest = len(order) - stop
        enough = stop - start >= FILLS * num_rows and rest >= FILLS * num_rows
        if stop == len(order) or (padded[stop] < padded[stop - 1] and enough):
            yield int(padded[start]), order[start:stop]
            start = stop


def num_rows(prompts: int, batch_size: int) -> int:
    """The rows of a batch: `batch_size`, or for fewer prompts the next power of two."""
    return min(batch_size, 1 << (prompts - 1).bit_length())


def _padded_length(longest: int) -> int:
    return bucket_length(longest, 2 * longest)


def generate_windows(
    policy: Any,
    params: Any,
    prompts: Sequence[Tokens],
    settings: DecodingSettings,
    *,
    batch_size: int = 32,
    seed: int = 0,
    first: int = 0,
    hooks: Hooks = NO_HOOKS,
    images: PromptImages | None = None,
) -> Iterator[
    tuple[slice, Int[np.ndarray, "rows samples length"], Float[np.ndarray, "rows samples"]]
]:
    """Decodes windows of `WINDOW` * batch_size prompts, and yields them in order.

    Sample k of prompt i has the key fold_in(fold_in(seed, i), k) and its token t the key fold_in of that and t: a response depends on
    the seed, its prompt and these numbers, and not on what is decoded beside it. (In another batch size the last bits of its
    probabilities may differ, and with them, rarely, a token.) Within a window everything is done in one order, so that a run that
    starts at a later window returns exactly the responses of an uninterrupted run.

    Args:
      policy, params, prompts, settings: the network, token ids, and how to decode. Rows are divided among the devices on which the
        parameters lie.
      batch_size: the number of prompts that are decoded at a time.
      seed: the seed of all samples.
      first: windows before the one with this prompt are left out.
      hooks: tokens that are allowed beside those of the settings, and what is added to scores. A response after which nothing is
        allowed ends without EOS.
      images: the images of prompts with image tokens.

    Yields:
      The slice of prompts, their response tokens (EOS, then padding) and log-probabilities under the
      policy at temperature 1 (nats, sums).
    """
    decode = decoder(policy, settings, batch_size, hooks)
    key = jax.random.key(seed)

    def one(part: slice) -> Any:
        indices = np.arange(part.start, part.stop)
        given, here = params, list(prompts[part])
        if images is not None:
            of_part = images._replace(pixels=images.pixels[part])
            given, here = with_table(params, here, of_part, num_rows(len(prompts), window))
        return part, *decode(given, here, indices, key)

    window = WINDOW * batch_size
    parts = [part for part in chunks(len(prompts), window) if part.stop > first]
    left = sum(part.stop - part.start for part in parts)
    decoded = ((part.stop - part.start, one(part)) for part in parts)
    yield from progress(decoded, left, "generating", "prompt")


def generate_tokens(
    policy: Any,
    params: Any,
    prompts: Sequence[Tokens],
    settings: DecodingSettings,
    *,
    batch_size: int = 32,
    seed: int = 0,
    hooks: Hooks = NO_HOOKS,
    images: PromptImages | None = None,
) -> tuple[Int[np.ndarray, "prompts samples length"], Float[np.ndarray, "prompts samples"]]:
    """Returns the results of all windows of `generate_windows` together."""
    parts = list(
        generate_windows(
            policy,
            params,
            prompts,
            settings,
            batch_size=batch_size,
            seed=seed,
            hooks=hooks,
            images=images,
        )
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
    hooks: Hooks = NO_HOOKS,
) -> tuple[list[list[str]], Float[np.ndarray, "prompts samples"]]:
    """Returns the texts of a policy's responses, for use inside a program.

    Args:
      policy, params: a policy and its parameters.
      encoder: the encoder of the run, from `jaxalign.inference.encoders.encoder_of`.
      prompts: the texts of the prompts.
      settings: the decoding settings.
      batch_size, seed, hooks: as in `generate_windows`.

    Returns:
      `[prompts][num_samples]` texts and their log-probabilities under the untempered policy, in nats.
    """
    tokens, log_probs = generate_tokens(
        policy,
        params,
        encoder.prompts(prompts).tokens,
        settings,
        batch_size=batch_size,
        seed=seed,
        hooks=hooks,
    )
    return [
        [decode_tokens(encoder.vocabulary, row) for row in group] for group in tokens
    ], log_probs
