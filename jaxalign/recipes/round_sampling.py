"""Samples the candidates of a round: which policy answers which prompt, and which of its responses can be trained on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.candidates import Candidates, read_candidates, write_candidates
from jaxalign.data.encoding import TextEncoder
from jaxalign.errors import UserError, require_range
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.generate import GenerationSettings, write_responses
from jaxalign.inference.prompt_files import Prompts
from jaxalign.inference.sampling import DecodingSettings
from jaxalign.recipes.round_prompts import Prompt, file_digest, reference_fields
from jaxalign.runs.folder import Run

CANDIDATES = "candidates.jsonl"
ROLES = ("previous", "start", "teacher")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Who answers the prompts of a round, and how.

    Attributes:
      roles: the share of the prompts that each role answers: 'previous' (the policy of the round before), 'start' and 'teacher'.
      num_samples: the number of responses to a prompt.
      temperature, top_k, top_p, num_beams: see `jaxalign.inference.sampling.DecodingSettings`. One response at temperature 0 is greedy.
      batch_size: the number of prompts decoded at a time. Responses do not depend on it, but for rounding.
      logged: whether the responses that the file of prompts has are candidates too, after the sampled ones.
    """

    roles: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"previous": 1.0})
    num_samples: int = 2
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 0
    batch_size: int = 32
    logged: bool = False

    def __post_init__(self) -> None:
        for role, share in self.roles.items():
            if role not in ROLES:
                raise UserError(f"Sampler.roles names {role!r}; the roles are {', '.join(ROLES)}")
            require_range("Sampler", "(0, 1]", roles=share)
        if abs(sum(self.roles.values()) - 1) > 1e-6:
            raise UserError(
                f"Sampler.roles are shares, so they must sum to 1, not {dict(self.roles)}"
            )
        require_range("Sampler", "[1, inf)", batch_size=self.batch_size)
        self.decoding(1)

    def decoding(self, max_target_length: int) -> DecodingSettings:
        """Returns the settings of decoding."""
        return DecodingSettings(
            max_target_length=max_target_length,
            num_samples=self.num_samples,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            num_beams=self.num_beams,
        )

    def shared_out(self, count: int, seed: Sequence[int]) -> dict[str, list[int]]:
        """Returns the positions of the prompts that each role answers, ascending; their numbers are the shares, rounded."""
        order = np.random.default_rng(seed).permutation(count)
        ends = np.rint(np.cumsum(list(self.roles.values())) * count).astype(int)
        parts = np.split(order, ends[:-1])
        return {role: sorted(part.tolist()) for role, part in zip(self.roles, parts, strict=True)}


def sample(
    folder: Path,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    runs: Mapping[str, str],
    *,
    lengths: Mapping[str, int],
    number: int,
    seed: int,
) -> dict[str, Any]:
    """Writes the candidates of a round; an interrupted call continues after the last batch of prompts.

    The candidates have no log-probabilities of the sampler: annotators score the text, encoded again as in training. A response that
    training could not read (unfinished, empty, or too long when encoded again) is left out and counted.

    Args:
      folder: the folder of the stage.
      prompts: the prompts of the round.
      sampler: who answers and how.
      runs: the run of each role.
      lengths: the tokens of ``inputs`` and ``targets``, EOS included.
      number: the round.
      seed: the seed of the recipe.

    Raises:
      UserError: a policy gives NaN, or no response can be used.
    """
    responses: list[list[str]] = [[] for _ in prompts]
    sources: list[list[str]] = [[] for _ in prompts]
    dropped: Counter[str] = Counter()
    identities, encoder = {}, None
    for role, positions in sampler.shared_out(len(prompts), (seed, number)).items():
        if not positions:
            continue
        run = Run(runs[role]).policy()
        encoder = encoder_of(
            run, max_input_length=lengths["inputs"], max_target_length=lengths["targets"]
        )
        identity = {"run_id": run.run.description.run_id, "step": run.step}
        identities[role] = identity
        output = folder / f"{role}.jsonl"
        write_responses(
            run,
            encoder,
            Prompts([prompts[i].text for i in positions], [{} for _ in positions]),
            output,
            GenerationSettings(
                sampler.decoding(encoder.limits.max_target_length),
                sampler.batch_size,
                seed * 1000 + number,
            ),
            origin=identity,
        )
        for i, texts in zip(positions, read_candidates(output).responses, strict=True):
            kept = _usable(encoder, prompts[i].text, texts, dropped)
            if len(kept) < len(texts) and sampler.logged:
                # Selectors know the sampled responses by their position before the logged ones.
                dropped["prompt of such a response"] += 1
                continue
            responses[i], sources[i] = kept, [role] * len(kept)
    if sampler.logged and encoder is not None:
        for i, prompt in enumerate(prompts):
            if responses[i]:
                kept = _usable(encoder, prompt.text, prompt.logged, dropped)
                responses[i] += kept
                sources[i] += ["logged"] * len(kept)
    answered = [i for i, texts in enumerate(responses) if texts]
    if not answered:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"none of the responses to {len(prompts)} prompts can be used ({reasons}); train the sampling policy longer, or raise "
            "TASK_FEATURE_LENGTHS"
        )
    path = folder / CANDIDATES
    write_candidates(
        path,
        Candidates(
            [prompts[i].text for i in answered],
            [responses[i] for i in answered],
            {},
            [
                {"id": i, "round": number, "sources": sources[i], **reference_fields(prompts[i])}
                for i in answered
            ],
            str(path),
        ),
    )
    return {
        "prompts": len(answered),
        "responses": sum(len(texts) for texts in responses),
        "dropped": dict(dropped),
        "by": identities,
        "candidates": file_digest(str(path)),
    }


def _usable(
    encoder: TextEncoder, prompt: str, texts: Sequence[str], dropped: Counter[str]
) -> list[str]:
    """Returns the responses that a cache would accept, and counts the others by reason."""
    kept = []
    for text in texts:
        problem = ("empty_response", "") if not text.strip() else encoder.problem(prompt, [text])
        if problem is None:
            kept.append(text)
        else:
            dropped[problem[0]] += 1
    return kept
