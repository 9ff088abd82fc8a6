"""The judge `llm` of `evaluate`: scores of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.annotation.llm_judge import LLMJudge
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError
from jaxalign.plugins import Registry

_SETTINGS: Registry[LLMJudge] = Registry("judge", lambda name, function: LLMJudge())
_SETTINGS.register("llm")(LLMJudge)


class LLMScores:
    """Scores by the annotator `llm` in the mode `pointwise`. A verdict that is missing is an error: a mean over the others is biased.

    Args:
      argument: settings as `key=value;key=value`. A semicolon separates them, because a comma separates judges.
    """

    name = "llm"

    def __init__(self, argument: str = "") -> None:
        settings = (
            argument.replace(";", ",") if "=" in argument else f"mode={argument or 'pointwise'}"
        )
        annotator = _SETTINGS.build(f"llm:mode=pointwise,{settings}")
        if annotator.mode != "pointwise":
            raise UserError(
                "judge 'llm' scores responses, so its mode is pointwise; pairwise is for jaxalign annotate"
            )
        self._annotator = annotator

    def check(self, prompts: Sequence[str], references: Any) -> None:
        """Asks one question, so that a wrong key or URL is told before anything is generated."""
        del references
        self._annotator.annotate(Candidates(prompts[:1], [["(no response)"]] * len(prompts[:1])))

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], references: Any = None
    ) -> np.ndarray:
        del references
        candidates = Candidates(prompts, [[text] for text in responses])
        scores = np.array([values[0] for values in self._annotator.annotate(candidates)])
        missing = int(np.isnan(scores).sum())
        if missing:
            raise UserError(
                f"judge 'llm': {missing} of {len(scores)} responses got no verdict (malformed or refused), and a mean over the "
                "others would be biased; raise max_tokens or reminders, or change the template. The other replies are cached"
            )
        return scores
