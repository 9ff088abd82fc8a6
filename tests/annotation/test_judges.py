"""Judges: the built-in ones, the registry, and judges of the user's own."""

import dataclasses
import random

import numpy as np
import pytest

from jaxalign.annotation import features, judges
from jaxalign.data import synthetic
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.tokenization import Limits
from jaxalign.errors import UserError
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.runs.folder import Run


def test_slot_error_is_zero_for_a_perfect_response_and_negative_for_a_careless_one():
    prompt, other = synthetic.make_prompts(2, seed=0)
    good = synthetic.make_response(prompt, random.Random(0))
    # Of the other act's sentence, every slot is missing and every value invented.
    wrong = synthetic.make_response(other, random.Random(0))
    expected = synthetic.slot_errors(prompt, wrong)
    scores = judges.get_judge("slot_error").score([prompt] * 3, [good, "nothing .", wrong])
    assert list(scores) == [0.0, -1.0, -expected.rate]
    assert expected.invented > 0


def test_slot_error_reads_dialogue_acts_and_knows_values_of_other_acts(write_lines):
    prompt = "inform(name='buena vista motor inn';area='fort mason')"
    other = "inform(name='inn on castro')"
    responses = [
        "buena vista motor inn is in fort mason",
        "buena vista motor inn",
        "inn on castro is in fort mason",
    ]
    alone = judges.get_judge("slot_error").score([prompt] * 3, responses)
    assert list(alone) == [0.0, -0.5, -0.5]
    # The third names a hotel that nobody asked for, known from another act.
    acts = write_lines("acts.jsonl", [{"prompt": other}])
    informed = judges.get_judge(f"slot_error:{acts}").score([prompt] * 3, responses)
    assert list(informed) == [0.0, -0.5, -1.0]


def test_slot_error_refuses_prompts_that_are_no_acts():
    with pytest.raises(UserError, match="needs dialogue acts"):
        judges.get_judge("slot_error").score(["tell me a joke"], ["no"])


def test_exact_match_takes_any_reference_and_ignores_white_space():
    judge = judges.get_judge("exact_match")
    scores = judge.score(["p", "p"], [" a  b ", "a c"], [["x", "a b"], ["a b"]])
    assert list(scores) == [1.0, 0.0]
    with pytest.raises(UserError, match="needs references"):
        judge.score(["p"], ["a"], None)
    with pytest.raises(UserError, match="no reference for prompt 'p'"):
        judge.score(["p"], ["a"], [[]])


def test_longer_wins():
    assert list(judges.get_judge("length").score(["p", "p"], ["aaa", "a"])) == [3.0, 1.0]


def test_reward_model_reads_prompt_and_response_and_says_what_it_cuts(
    fake_runs, mean_token_reward, vocabulary, capsys
):
    judge = judges.get_judge("reward_model:run1")
    scores = judge.score(["a", "a"], ["zzzz", "aaaa"])
    assert scores[0] > scores[1]
    encoder = TextEncoder(vocabulary, Limits(5, 20))
    short = judges.RewardModelJudge(mean_token_reward, {"scale": 1.0}, encoder)
    read = [ord("a")] * 4 + [1] + [ord("z")] * 19 + [1]
    np.testing.assert_allclose(short.score(["a" * 50], ["z" * 40]), np.mean(read) / 100, rtol=1e-6)
    told = capsys.readouterr().err
    assert "1 of 1 prompts were cut at their end (max_input_length=5" in told
    assert "1 of 1 responses were cut at their end (max_target_length=20" in told
    with pytest.raises(UserError, match="needs a checkpoint"):
        judges.get_judge("reward_model")


def test_a_reward_of_unnamed_scores_cannot_judge_text(fake_runs, monkeypatch):
    features = dataclasses.replace(Run("run1").reward(), network=FeatureReward(7))
    monkeypatch.setattr(Run, "reward", lambda run: features)
    with pytest.raises(UserError, match="records the names of 0"):
        judges.get_judge("reward_model:run1")


def test_a_function_of_ones_own_is_a_judge(tmp_path, monkeypatch):
    (tmp_path / "my_judges.py").write_text(
        "def vowels(prompts, responses, references):\n"
        "    return [sum(c in 'aeiou' for c in r) for r in responses]\n"
        "def broken(prompts, responses, references):\n"
        "    return [float('nan')] * len(responses)\n"
        "def short(prompts, responses, references):\n"
        "    return [1.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = judges.get_judge("my_judges:vowels")
    assert judge.name == "vowels"
    assert list(judges.checked_scores(judge, ["p", "p"], ["aeb", "b"])) == [2.0, 0.0]
    with pytest.raises(UserError, match="gave nan for response 0"):
        judges.checked_scores(judges.get_judge("my_judges:broken"), ["p"], ["a"])
    with pytest.raises(UserError, match="one number each"):
        judges.checked_scores(judges.get_judge("my_judges:short"), ["p", "p"], ["a", "b"])
    with pytest.raises(UserError, match="has no function 'absent'"):
        judges.get_judge("my_judges:absent")


def test_unknown_judges_are_told_with_the_known_names():
    with pytest.raises(UserError, match="exact_match, length, llm, reward_model, slot_error"):
        judges.get_judge("elo")
    with pytest.raises(UserError, match="cannot import module 'no_such_module'"):
        judges.get_judge("no_such_module:f")
    with pytest.raises(UserError, match="takes no argument"):
        judges.get_judge("length:3")


def test_a_registered_judge_is_found_and_its_name_is_taken(monkeypatch):
    monkeypatch.setattr(judges._REGISTRY, "_factories", dict(judges._REGISTRY._factories))

    @judges.register_judge("constant")
    def constant(argument):
        return judges.FunctionJudge("constant", lambda p, r, _: [float(argument)] * len(r))

    assert list(judges.get_judge("constant:2").score(["p"], ["r"])) == [2.0]
    with pytest.raises(ValueError, match="registered already"):
        judges.register_judge("constant")(constant)


def test_a_module_without_a_proper_name_is_a_mistake_of_the_user():
    for spec in (":function", ".module:function"):
        with pytest.raises(UserError, match="cannot import module"):
            judges.get_judge(spec)
        with pytest.raises(UserError, match="cannot import module"):
            features.get_extractor(spec)
