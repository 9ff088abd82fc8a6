"""Rounds: every stage resumes, labels are measured against a fixed start, and mistakes are told in one line."""

import json

import numpy as np
import pytest

from jaxalign.annotation.annotators import LabelsWanted, register_annotator
from jaxalign.data.candidates import read_candidates
from jaxalign.errors import UserError
from jaxalign.recipes import rounds as command
from jaxalign.recipes.round_graph import Labelled
from jaxalign.recipes.round_measures import Measure
from jaxalign.recipes.round_prompts import PromptSource
from jaxalign.recipes.round_sampling import Sampler
from jaxalign.recipes.stages import Waiting
from jaxalign.selection.selectors import Selection, register_selector
from tests.recipes.conftest import training


@register_annotator("test_letters")
class Letters:
    """Prefers responses with many letters."""

    kind = "scores"
    whole_file = False

    def __init__(self, policy: str = "", reference: str = "") -> None:
        self.policy, self.reference = policy, reference

    def identity(self):
        return {"policy": self.policy, "reference": self.reference}

    def annotate(self, candidates):
        return [np.array([float(len(t)) for t in texts]) for texts in candidates.responses]


@register_selector("test_best_worst")
def best_worst(annotation: str = "judge"):
    def select(candidates):
        lines, ties = [], 0
        scores = candidates.annotation(annotation, "scores").values
        for prompt, texts, values in zip(
            candidates.prompts, candidates.responses, scores, strict=True
        ):
            if len(texts) < 2 or values.max() == values.min():
                ties += 1
                continue
            chosen, rejected = texts[int(values.argmax())], texts[int(values.argmin())]
            lines.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": 1.0})
        return Selection(lines, "pair", {"tie": ties}, {"pairs_per_prompt": len(lines) / 10})

    return select


def run(folder, start, prompts, **changes):
    given = {
        "output_dir": str(folder),
        "start": str(start),
        "prompts": PromptSource(file=str(prompts), per_round=6),
        "training": training,
        "annotators": {"judge": "test_letters:policy={previous},reference={start}"},
        "selector": "test_best_worst",
        "sampler": Sampler(num_samples=4, batch_size=8, temperature=1.5),
        "num_rounds": 2,
        "measure": Measure(count=4, judge="test_letters", truth="test_letters", batch_size=8),
        "per_round": {"BETA": (0.1, 0.2)},
    }
    return command.rounds(**{**given, **changes})


def test_two_rounds(start, prompts, tmp_path):
    content = run(tmp_path / "rounds", start, prompts)
    print(json.dumps(content, indent=1))
