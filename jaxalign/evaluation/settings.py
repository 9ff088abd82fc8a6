"""What an evaluation compares policies on, and how."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxalign.data.records import KINDS
from jaxalign.data.tokenization import DUPLICATES, LONG_PROMPTS
from jaxalign.errors import UserError, require_one_of, require_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of `jaxalign evaluate`, which has a flag of the same name for each.

    Attributes:
      prompts: a JSON Lines file or a cache folder.
      split: split of a cache folder.
      judges: as `jaxalign.annotation.judges.get_judge` reads them; None for slot_error.
      reference: name or path of the policy that KL and log-ratios are taken against; '' for the first policy.
      num_prompts: only the first so many prompts; 0 takes all.
      temperature: of the judged responses; 0 is greedy.
      kl_samples: responses a prompt, sampled at temperature 1, for the KL; 0 leaves it out.
      ranking_only: generate nothing.
      ranking_train: what the TF-IDF baseline is fitted on; '' for the training split of a cache folder.
      batch_size: prompts a batch.
      max_input_length, max_target_length: tokens, EOS included; 0 takes each run's own.
      long_prompts: how prompts are cut; '' takes each run's own way.
      kind: of the records of a file; '' recognises it by their fields.
      layout: of a file, see `jaxalign.data.layouts`.
      fields: names of a file's fields, such as ``response=completion,feedback=label``.
      duplicates: of a file: 'reject' or 'keep'.
      bootstrap: resamples for intervals (a fifth of them for rankings).
      step: a checkpoint's step, `best` or `latest`; None for best where one was kept.
      prompt_field: name of the prompt's field in a JSON Lines file.
      seed: of sampling and of the bootstrap.
    """

    prompts: str
    split: str = "validation"
    judges: tuple[str, ...] | None = None
    reference: str = ""
    num_prompts: int = 0
    temperature: float = 0.0
    kl_samples: int = 1
    ranking_only: bool = False
    ranking_train: str = ""
    batch_size: int = 32
    max_input_length: int = 0
    max_target_length: int = 0
    long_prompts: str = ""
    kind: str = ""
    layout: str = "records"
    fields: str = ""
    duplicates: str = "reject"
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
            max_input_length=self.max_input_length,
            max_target_length=self.max_target_length,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )
        require_one_of("evaluate", ("", *LONG_PROMPTS), long_prompts=self.long_prompts)
        require_one_of("evaluate", ("", *KINDS), kind=self.kind)
        require_one_of("evaluate", DUPLICATES, duplicates=self.duplicates)
        if self.judges is not None and self.ranking_only:
            raise UserError("ranking_only generates nothing, so judges have nothing to score")

    def describe(self) -> dict[str, Any]:
        """The settings that a reader of evaluation.json needs to compare it with another."""
        kept = ("prompts", "split", "temperature", "kl_samples", "bootstrap", "seed")
        return {name: getattr(self, name) for name in kept}
