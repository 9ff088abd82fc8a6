"""Every judge as an annotator, under its own specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation import judges
from jaxalign.annotation.flat import file_identity, flat, references_of, run_identity, split
from jaxalign.data.candidates import Candidates
from jaxalign.interop.opening import open_run
from jaxalign.plugins import own_code


class JudgeAnnotator:
    """The scores of a judge, see `judges`.

    Args:
      spec: the judge's specification, such as `slot_error`, `reward_model:runs/rm` or `exact_match`.
    """

    kind = "scores"

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._judge = judges.get_judge(spec)
        # Without a file of acts, this judge recognises invented values by the acts of all prompts that it judges together.
        self.whole_file = (
            isinstance(self._judge, judges.SlotErrorJudge) and self._judge.known_acts is None
        )

    def identity(self) -> Mapping[str, Any]:
        name, _, argument = self._spec.partition(":")
        if argument and Path(argument).expanduser().is_file():
            return {"judge": name, **file_identity(argument)}
        if name == "reward_model":
            return {"judge": name, **run_identity(open_run(argument))}
        return {
            "judge": self._spec,
            **({"source": code} if (code := own_code(self._spec, judges.judge_names())) else {}),
        }

    def check(self, candidates: Candidates) -> None:
        """Raises `UserError` if the judge cannot judge responses to these prompts."""
        prompts, _ = flat(candidates)
        judges.check_prompts(self._judge, prompts, references_of(candidates) or [])

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        prompts, texts = flat(candidates)
        scores = judges.checked_scores(self._judge, prompts, texts, references_of(candidates))
        return split(scores, candidates)
