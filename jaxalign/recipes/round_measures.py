"""Measures the policy of a round on held-out prompts: judged reward, length, and distance from the start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.annotation import annotators as annotating
from jaxalign.annotation.annotators import Annotator
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError, require_range
from jaxalign.evaluation.statistics import distinct_n, kl_estimate
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import EOS, decode_tokens, response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.recipes.round_prompts import Prompt, reference_fields
from jaxalign.runs.folder import Run

RESPONSES = "responses.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured after each round.

    Attributes:
      file: held-out prompts, a file of any layout, a cache folder or a bundled task; '' sets ``count`` prompts of the recipe's file aside.
      split: the split of a cache or of a bundled task.
      count: the number of prompts; with a file, 0 takes all of them, and without one, 0 measures nothing.
      judge: the annotator whose scores are the reward, such as slot_error; '' for none.
      truth: an annotator that knows which response is better, to which the labels of a round are compared; '' for none.
      num_samples: the number of responses to a prompt.
      temperature: of these responses. Their mean distance from the start is the KL divergence of the policy only at temperature 1.
      batch_size: the number of prompts decoded together.
    """

    file: str = ""
    split: str = "validation"
    count: int = 0
    judge: str = ""
    truth: str = ""
    num_samples: int = 1
    temperature: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        require_range("Measure", "[0, inf)", count=self.count)
        require_range("Measure", "[1, inf)", batch_size=self.batch_size)
        DecodingSettings(1, num_samples=self.num_samples, temperature=self.temperature)


def measure(
    folder: Path,
    run: str,
    start: str,
    prompts: Sequence[Prompt],
    settings: Measure,
    judge: Annotator | None,
    *,
    lengths: dict[str, int],
    seed: int,
) -> dict[str, Any]:
    """Samples responses of a run's policy to prompts, and returns their measures.

    Both policies read the sampled tokens anew, in the same way, so the KL of the start to itself is exactly 0.

    Raises:
      UserError: the judge fails or gives no finite score, or a policy gives NaN.
    """
    opened = Run(run).policy()
    encoder = encoder_of(
        opened, max_input_length=lengths["inputs"], max_target_length=lengths["targets"]
    )
    decoding = DecodingSettings(
        encoder.limits.max_target_length,
        num_samples=settings.num_samples,
        temperature=settings.temperature,
    )
    encoded = encoder.prompts([prompt.text for prompt in prompts]).tokens
    tokens, _ = generate_tokens(
        opened.network,
        opened.params,
        encoded,
        decoding,
        batch_size=settings.batch_size,
        seed=seed,
    )
    rows = [[response_tokens(row) or [EOS] for row in group] for group in tokens]
    own, first = ((each.network, each.params) for each in (opened, Run(start).policy()))
    divergences = sequence_kl(own, first, encoded, rows, batch_size=settings.batch_size)
    if not np.isfinite(divergences).all():
        raise UserError(f"{run} or {start} gives NaN or infinite log-probabilities")
    texts = [[decode_tokens(opened.vocabulary, row) for row in group] for group in rows]
    lengths_found = [len(row) for group in rows for row in group]
    kl = kl_estimate(divergences)
    found: dict[str, Any] = {
        "prompts": len(prompts),
        "length": float(np.mean(lengths_found)),
        "unfinished": float(np.mean([row[-1] != EOS for group in rows for row in group])),
        "distinct_2": float(distinct_n([text for group in texts for text in group], 2)),
        "kl_to_start": float(kl.mean),
        "kl_error": float(kl.standard_error),
    }
    scores: list[np.ndarray] = []
    if judge is not None:
        scores = _rewards(judge, prompts, texts, settings.judge)
        values = np.array([array.mean() for array in scores])
        found["reward"] = float(values.mean())
        found["reward_error"] = (
            float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        )
    with files.replacing(folder / RESPONSES) as file:
        for index, prompt in enumerate(prompts):
            line: dict[str, Any] = {"prompt": prompt.text, "responses": texts[index]}
            if scores:
                line["feedback"] = scores[index].tolist()
            line["kl_to_start"] = divergences[index].tolist()
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return found


def _rewards(
    judge: Annotator, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], name: str
) -> list[np.ndarray]:
    if judge.kind != "scores":
        raise UserError(f"JUDGE {name!r} gives {judge.kind}; measuring needs scores")
    candidates = Candidates(
        [prompt.text for prompt in prompts],
        [list(group) for group in texts],
        {},
        [reference_fields(prompt) for prompt in prompts],
        "held-out prompts",
    )
    annotated = annotating.apply(judge, candidates, "reward").annotations["reward"].values
    missing = sum(int(np.isnan(array).sum()) for array in annotated)
    if missing:
        raise UserError(f"JUDGE {name!r} gives NaN for {missing} held-out responses")
    return list(annotated)
