"""Implements `jaxalign generate`, which writes a policy's responses to a JSON Lines file of prompts. It can be resumed.

Output lines have the order of the input. To resume an interrupted run, give the same command again.
Complete lines are kept, an incomplete last line is dropped, and the remaining lines are exactly those
that the uninterrupted run would have written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.chat_templates import read_chat_template
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.images import image_format
from jaxalign.data.tokenization import LONG_PROMPTS
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.inference.constraints import prefix_tokens, read_bad_words
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.image_prompts import image_counts
from jaxalign.inference.prompt_files import Prompts, images_digest, read_prompts
from jaxalign.inference.resumable_output import count_unfinished, resume
from jaxalign.inference.rows import EOS, decode_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_windows
from jaxalign.inference.steering import steering_of_flags
from jaxalign.interop.opening import open_run
from jaxalign.locks import Lock
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks
from jaxalign.runs.folder import TrainedNetwork

# How the keys of samples follow from the seed: a file that was begun with others cannot be continued.
SAMPLE_KEYS = "seed, prompt, sample"


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """The settings of response generation.

    Attributes:
      decoding: the decoding settings.
      batch_size: the number of prompts decoded at a time. Responses do not depend on it, but for rounding.
      seed: sample k of prompt i has the key fold_in(fold_in(seed, i), k).
    """

    decoding: DecodingSettings
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("generate", "[1, inf)", batch_size=self.batch_size)
        require_range("generate", "[0, inf)", seed=self.seed)


def generate(
    checkpoint: str,
    input: str,
    output: str,
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_beams: int = 0,
    alpha: float = 0.6,
    min_target_length: int = 0,
    no_repeat_ngram: int = 0,
    forced_prefix: str = "",
    bad_words: str = "",
    steer_by: str = "",
    steer_weight: float = 1.0,
    steer_reference: str = "",
    steer_goal: str = "",
    steer_candidates: int = 0,
    batch_size: int = 32,
    max_input_length: int = 0,
    max_target_length: int = 0,
    long_prompts: str = "",
    seed: int = 0,
    role: str = "policy",
    step: int | str | None = None,
    overwrite: bool = False,
    prompt_field: str = "prompt",
    chat_template: str = "",
) -> dict[str, Any]:
    """Writes `num_samples` responses for every prompt to a file.

    Args:
      checkpoint: a run folder or checkpoint.
      input: JSON Lines with one prompt per line; blank lines are skipped. A policy that reads images gets the field `image` of a line.
      output: JSON Lines; each line has `id` (index of the prompt from 0), `prompt`, `responses`
        [num_samples], `log_probs` [num_samples] (nats, under the untempered policy, EOS included), `finished` [num_samples] (whether
        the response ended before the length limit) and the other fields of the input line. An input field `id` is kept as `source_id`.
        Input fields `responses`, `log_probs` and `finished` are replaced, and annotations of old responses are left out.
        `sampler` is a digest of the policy, its step and all settings, which OUTPUT.settings.json holds in full.
      num_samples, temperature, top_k, top_p, num_beams, alpha, min_target_length, no_repeat_ngram: see DecodingSettings.
      forced_prefix: a text with which every response begins.
      bad_words: a file with one word or phrase per line, none of which occurs in a response as the vocabulary splits it. A response
        after which nothing is allowed ends there, with `finished` false.
      steer_by: a run of a reward model or of a policy whose score is added to the log-probabilities of tokens, see
        `inference.steering.steering`. `log_probs` remain those of the policy that decodes.
      steer_weight: nats per unit of the score.
      steer_reference: the run q of the log-ratio of a policy; by default the policy that decodes.
      steer_goal: logged records or candidates whose good responses are the goal of a reward model's states.
      steer_candidates: the most probable tokens of a sequence that a reward model values; 0: 8, or twice the beams if these are more.
      batch_size: the number of prompts decoded together.
      max_input_length, max_target_length: the lengths in tokens, EOS included; 0 takes the run's lengths.
      long_prompts: "truncate" keeps the beginning of a prompt that is too long, "truncate_left" keeps
        its end, and "reject" stops with an error; by default the setting of the run's training.
      seed: sample k of prompt i uses the key fold_in(fold_in(seed, i), k), whatever the batch size.
      role: the network of the run that generates, such as `policy`.
      step: a step number, `best` or `latest`; by default the best if one was kept, else the latest.
      overwrite: whether to start again if the output exists.
      prompt_field: the name of the input field with the prompt.
      chat_template: what turns prompts that are chat messages into text: a Jinja file, the folder of a tokenizer, or a run folder whose
        task had a template.

    Returns:
      `prompts`: the number of lines in the output; `generated`: the number of lines written by this call; `output`; `cut_prompts`,
      `unknown_pieces`, `unfinished`: the shares of prompts that were cut, of prompt pieces that the vocabulary does not contain, and
      of responses that did not end before the length limit. The shares are those of the whole output, whoever wrote its lines.

    Raises:
      UserError: a malformed input line (with file and line), an output that was written from
        other prompts or with other settings, or a policy that gives NaN.
    """
    require_range("generate", "[1, inf)", batch_size=batch_size)
    lengths = {"max_input_length": max_input_length, "max_target_length": max_target_length}
    require_range("generate", "[0, inf)", seed=seed, **lengths)
    require_one_of("generate", ("", *LONG_PROMPTS), long_prompts=long_prompts)
    if Path(output).expanduser().resolve() == Path(input).expanduser().resolve():
        raise UserError(f"--output is the input {input}; give another file")
    template = read_chat_template(chat_template) if chat_template else None
    prompts = read_prompts(input, prompt_field, template=template)
    run = open_run(checkpoint, step).policy(role=role)
    images = image_format(run.network)
    if images is not None:
        prompts = read_prompts(input, prompt_field, images, template)
    if prompts.rendered and template is None and "chat_template" in run.run.description.content:
        raise UserError(
            f"{input} holds prompts of chat messages, and {run.run.folder} was trained with a chat template: give it as "
            f"--chat_template={run.run.folder}, or another one"
        )
    encoder = encoder_of(
        run,
        max_input_length=max_input_length,
        max_target_length=max_target_length,
        long_prompts=long_prompts,
        images=True,
    )
    decoding = DecodingSettings(
        max_target_length=encoder.limits.max_target_length,
        num_samples=num_samples,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        alpha=alpha,
        min_target_length=min_target_length,
        no_repeat_ngram=no_repeat_ngram,
        forced_prefix=prefix_tokens(forced_prefix, run.vocabulary),
        bad_words=read_bad_words(bad_words, run.vocabulary) if bad_words else (),
    )
    origin: dict[str, Any] = {"checkpoint": str(checkpoint), "role": role, "step": run.step}
    steered = steering_of_flags(
        run,
        steer_by=steer_by,
        steer_weight=steer_weight,
        steer_reference=steer_reference,
        steer_goal=steer_goal,
        steer_candidates=steer_candidates,
        num_beams=num_beams,
    )
    if steered is not None:
        origin["steering"] = steered.identity
    return write_responses(
        run,
        encoder,
        prompts,
        Path(output).expanduser(),
        GenerationSettings(decoding, batch_size, seed),
        origin=origin,
        overwrite=overwrite,
        hooks=NO_HOOKS if steered is None else Hooks(score=steered.score),
    )


def write_responses(
    run: TrainedNetwork,
    encoder: TextEncoder,
    prompts: Prompts,
    output: Path,
    settings: GenerationSettings,
    *,
    origin: Mapping[str, Any],
    overwrite: bool = False,
    hooks: Hooks = NO_HOOKS,
) -> dict[str, Any]:
    """Does the work of `generate` for an open run.

    `origin` identifies the policy and the `hooks`, and is compared when a file is continued.
    """
    images = prompts.images
    counts = None if images is None else image_counts(run.network, images.pixels)
    encoded = encoder.prompts(prompts.texts, counts)
    fingerprint: dict[str, Any] = {
        **origin,
        "seed": settings.seed,
        "keys": SAMPLE_KEYS,
        "max_input_length": encoder.limits.max_input_length,
        "long_prompts": encoder.limits.long_prompts,
        **_recorded(settings.decoding),
    }
    if images is not None:
        fingerprint["images"] = images_digest(images)
    sampler = sampler_digest(run.run.description.run_id, fingerprint)
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(output.with_name(f".{output.name}.lock"), f"output {output}")
    done = resume(output, fingerprint, list(prompts.texts), overwrite)
    unfinished = count_unfinished(output) if done else 0
    cut = encoder.describe_cut(encoded)
    if cut:
        print(cut, file=sys.stderr)
    written = done
    with output.open("ab") as file:
        for part, tokens, log_probs in generate_windows(
            run.network,
            run.params,
            encoded.tokens,
            settings.decoding,
            batch_size=settings.batch_size,
            seed=settings.seed,
            first=done,
            hooks=hooks,
            images=images,
        ):
            _check_finite(log_probs, run)
            for row, index in enumerate(range(part.start, part.stop)):
                if index < done:
                    continue
                finished = [bool(ended) for ended in (tokens[row] == EOS).any(axis=-1)]
                line = {
                    **prompts.records[index],
                    "id": index,
                    "prompt": prompts.texts[index],
                    "responses": [decode_tokens(run.vocabulary, sample) for sample in tokens[row]],
                    "log_probs": [float(value) for value in log_probs[row]],
                    "finished": finished,
                    "sampler": sampler,
                }
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                written += 1
                unfinished += finished.count(False)
            file.flush()
            os.fsync(file.fileno())
    lock.release()
    responses = written * settings.decoding.num_samples
    return {
        "output": str(output),
        "prompts": written,
        "generated": written - done,
        "cut_prompts": encoded.cut_fraction,
        "unknown_pieces": encoded.unknown_fraction,
        "unfinished": unfinished / max(responses, 1),
    }


def _recorded(settings: DecodingSettings) -> dict[str, Any]:
    """Returns the settings as JSON has them. Constraints that are off are left out, as files from before they existed have them."""
    recorded = json.loads(json.dumps(dataclasses.asdict(settings)))
    constraints = ("min_target_length", "no_repeat_ngram", "forced_prefix", "bad_words")
    return {key: value for key, value in recorded.items() if value or key not in constraints}


def sampler_digest(run_id: str, fingerprint: Mapping[str, Any]) -> str:
    """Returns twelve hexadecimal digits that differ between runs, steps, decoding settings and seeds."""
    identity = {key: value for key, value in fingerprint.items() if key != "checkpoint"}
    text = json.dumps({"run_id": run_id, **identity}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_finite(log_probs: np.ndarray, run: TrainedNetwork) -> None:
    if not np.isfinite(log_probs).all():
        raise UserError(
            f"{run.run.folder} gives NaN or infinite log-probabilities; its parameters are not usable, choose another step"
        )
