"""How far judges agree with the feedback of logged responses."""

import numpy as np
import pytest

from jaxalign.data.evaluation_set import EvaluationSet
from jaxalign.data.records import Record
from jaxalign.evaluation.judge_agreement import judge_agreement
from jaxalign.evaluation.page.logged import judge_agreement_part
from jaxalign.evaluation.results import finite_json


class Judge:
    """Scores a response by the number in its text, times a sign."""

    def __init__(self, name, sign=1.0):
        self.name, self._sign = name, sign
        self.asked = []

    def score(self, prompts, responses, references=None):
        self.asked += list(zip(prompts, responses, references, strict=True))
        return self._sign * np.array([float(text) for text in responses])


def _data(prompts=30):
    """Two responses to every prompt, far apart in the file, with their number as feedback."""
    data = EvaluationSet()
    for k in range(2):
        for i in range(prompts):
            value = float(i % 7 + k)
            record = Record(f"prompt {i}", (f"{value}",), (value,))
            data.add(record, references=[f"reference {i}"])
    return data


def test_agreement_is_that_of_the_scores_with_the_feedback():
    like, unlike = Judge("like"), Judge("unlike", -1.0)
    found = judge_agreement([like, unlike], _data(), 100)
    assert found["like"]["auc"] == found["like"]["pairwise_accuracy"] == 1.0
    assert found["like"]["spearman"] == pytest.approx(1.0)
    assert found["unlike"]["auc"] == found["unlike"]["pairwise_accuracy"] == 0.0
    assert found["like"]["pairs"] == 30 and found["like"]["responses"] == 60


def test_responses_to_a_prompt_stay_together_and_have_its_references():
    judge = Judge("like")
    found = judge_agreement([judge], _data(), 5)
    assert found["like"]["responses"] == 6 and found["like"]["pairs"] == 3
    assert {prompt for prompt, _, _ in judge.asked} == {"prompt 0", "prompt 1", "prompt 2"}
    assert all(
        references == [prompt.replace("prompt", "reference")]
        for prompt, _, references in judge.asked
    )


def test_nothing_is_judged_without_feedback_or_if_nobody_asks():
    judge = Judge("like")
    assert judge_agreement([judge], _data(), 0) == {}
    assert judge_agreement([judge], EvaluationSet(), 100) == {}
    assert judge_agreement([], _data(), 100) == {}
    assert judge.asked == []


def test_the_page_says_how_many_responses_there_are_and_why_there_is_no_interval():
    found = finite_json(judge_agreement([Judge("<like>")], _data(3), 100))["<like>"]
    shown = judge_agreement_part("<like>", found)
    assert "&lt;like&gt;" in shown and "<like>" not in shown
    assert ">6<" in shown and "fewer than" in shown
