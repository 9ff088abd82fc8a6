"""The settings with which an evaluation compares policies."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from jaxalign.data.records import KINDS
from jaxalign.data.rejections import MAX_REJECTED_FRACTION
from jaxalign.data.tokenization import DUPLICATES, LONG_PROMPTS
from jaxalign.errors import UserError, require_one_of, require_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of `jaxalign evaluate`, which has a flag of the same name for each.

    Attributes:
      prompts: a JSON Lines file or a cache folder.
      split: the split of a cache folder.
      judges: in the form that `jaxalign.annotation.judges.get_judge` reads; None for slot_error.
      reference: the name or path of the policy against which KL and log-ratios are computed; '' for the first policy.
      num_prompts: use only the first num_prompts prompts; 0 uses all.
      temperature: the temperature of the judged responses; 0 is greedy.
      kl_samples: the number of responses to each prompt, sampled at temperature 1, for the KL; 0 leaves the KL out.
      judge_feedback: about how many logged responses with feedback every judge scores too, to say how far it agrees with them; 0: none.
      ranking_only: whether to generate nothing.
      ranking_train: the data on which the TF-IDF baseline is fitted; '' for the training split of a cache folder.
      batch_size: the number of prompts in a batch.
      max_input_length, max_target_length: limits in tokens, including EOS; 0 uses the limits of each run.
      long_prompts: how prompts are cut; '' uses the setting of each run.
      kind: the record kind of a file; '' detects it from the fields.
      layout: the layout of a file, see `jaxalign.data.layouts`.
      chat_template: what turns the chat messages of a file into text; '' for lines `role: content`.
      fields: the names of a file's fields, such as ``response=completion,feedback=label``.
      duplicates: 'reject' or 'keep' repeated records of a file.
      max_rejected_fraction: the largest share of a file's lines that may be unusable.
      bootstrap: the number of resamples for intervals (a fifth of them for rankings).
      step: a checkpoint's step, `best` or `latest`; None for `best` if a best checkpoint was kept.
      prompt_field: the name of the prompt's field in a JSON Lines file.
      seed: the seed of sampling and of the bootstrap.
    """

    prompts: str
    split: str = "validation"
    judges: tuple[str, ...] | None = None
    reference: str = ""
    num_prompts: int = 0
    temperature: float = 0.0
    kl_samples: int = 1
    judge_feedback: int = 200
    ranking_only: bool = False
    ranking_train: str = ""
    batch_size: int = 32
    max_input_length: int = 0
    max_target_length: int = 0
    long_prompts: str = ""
    kind: str = ""
    layout: str = "records"
    chat_template: str = ""
    fields: str = ""
    duplicates: str = "reject"
    max_rejected_fraction: float = MAX_REJECTED_FRACTION
    bootstrap: int = 1000
    step: int | str | None = None
    prompt_field: str = "prompt"
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("evaluate", "[1, inf)", batch_size=self.batch_size)
        require_range(
            "evaluate",
            "[0, inf)",
            num_prompts=self.num_prompts,
            temperature=self.temperature,
            kl_samples=self.kl_samples,
            judge_feedback=self.judge_feedback,
            max_input_length=self.max_input_length,
            max_target_length=self.max_target_length,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )
        require_range("evaluate", "[0, 1]", max_rejected_fraction=self.max_rejected_fraction)
        require_one_of("evaluate", ("", *LONG_PROMPTS), long_prompts=self.long_prompts)
        require_one_of("evaluate", ("", *KINDS), kind=self.kind)
        require_one_of("evaluate", DUPLICATES, duplicates=self.duplicates)
        if self.judges is not None and self.ranking_only:
            raise UserError("ranking_only generates nothing, so judges have nothing to score")

    def describe(self) -> dict[str, Any]:
        """Returns the settings that a reader needs to compare an evaluation.json with another one."""
        kept = ("prompts", "split", "temperature", "kl_samples", "bootstrap", "seed")
        return {name: getattr(self, name) for name in kept}

    def request(self) -> dict[str, Any]:
        """Returns all settings as JSON, to recognise an evaluation that is repeated."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
