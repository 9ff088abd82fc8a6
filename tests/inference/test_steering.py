"""Steering by a run, as `jaxalign generate` takes it."""

import json

import pytest

from jaxalign.errors import UserError
from jaxalign.inference.generate import generate


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": "two words"}\n')
    return str(path)


@pytest.fixture
def logged(tmp_path):
    path = tmp_path / "logged.jsonl"
    lines = [("one", "aaaa", 1.0), ("two", "aa a", 1.0), ("two", "zzzz", 0.0)]
    rows = [{"prompt": p, "response": r, "feedback": f} for p, r, f in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def written(runs, prompts, tmp_path, **options):
    output = tmp_path / "out.jsonl"
    options = {"max_target_length": 4, "overwrite": True, **options}
    generate(runs["a"], prompts, str(output), **options)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
    return lines, settings


def test_weight_zero_changes_no_response_and_a_weight_does(runs, prompts, logged, tmp_path):
    plain, _ = written(runs, prompts, tmp_path)
    for options in (
        {"steer_by": runs["prefixes"]},
        {"steer_by": runs["prefixes"], "steer_goal": logged},
    ):
        same, _ = written(runs, prompts, tmp_path, steer_weight=0.0, **options)
        assert [each["responses"] for each in same] == [each["responses"] for each in plain]
        other, _ = written(runs, prompts, tmp_path, steer_weight=30.0, **options)
        assert [each["responses"] for each in other] != [each["responses"] for each in plain]
        assert same[0]["sampler"] != other[0]["sampler"]


def test_a_policy_steers_to_its_own_greedy_responses(runs, prompts, tmp_path):
    # log pi + 1 * (log p - log pi) = log p.
    steered, _ = written(runs, prompts, tmp_path, steer_by=runs["b"])
    output = tmp_path / "of_b.jsonl"
    generate(runs["b"], prompts, str(output), max_target_length=4)
    of_b = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["responses"] for each in steered] == [each["responses"] for each in of_b]
    # The log-probabilities are those of the policy that decodes.
    assert steered[0]["log_probs"] != of_b[0]["log_probs"]


def test_a_reference_of_its_own_cancels(runs, prompts, tmp_path):
    plain, _ = written(runs, prompts, tmp_path)
    same, settings = written(
        runs, prompts, tmp_path, steer_by=runs["b"], steer_reference=runs["b"], steer_weight=5.0
    )
    assert [each["responses"] for each in same] == [each["responses"] for each in plain]
    assert settings["steering"]["reference"] == {"run_id": "b", "step": 3}


def test_a_file_that_was_begun_with_another_goal_is_not_continued(runs, prompts, logged, tmp_path):
    options = {"steer_by": runs["prefixes"], "steer_goal": logged}
    _, settings = written(runs, prompts, tmp_path, **options)
    assert settings["steering"]["num_candidates"] == 8
    written(runs, prompts, tmp_path, overwrite=False, **options)
    with open(logged, "a") as file:
        file.write('{"prompt": "x", "response": "b", "feedback": 1.0}\n')
    with pytest.raises(UserError, match="steering"):
        written(runs, prompts, tmp_path, overwrite=False, **options)


def test_beams_have_two_candidates_each(runs, prompts, tmp_path):
    _, settings = written(runs, prompts, tmp_path, steer_by=runs["prefixes"], num_beams=5)
    assert settings["steering"]["num_candidates"] == 10
    with pytest.raises(UserError, match=r"steer_candidates is 6; it must be at least 10"):
        written(runs, prompts, tmp_path, steer_by=runs["prefixes"], num_beams=5, steer_candidates=6)


@pytest.mark.parametrize(
    "by, options, message",
    [
        ("", {"steer_goal": "x"}, "need --steer_by"),
        ("", {"steer_weight": 2.0}, "need --steer_by"),
        ("b", {"steer_goal": "x"}, "steer_goal is given, but .* is a policy run"),
        ("prefixes", {"steer_reference": "x"}, "steer_reference is given, but .* is a reward run"),
        ("prefixes", {"steer_goal": "missing.jsonl"}, "missing.jsonl"),
        ("prefixes", {"steer_weight": float("nan")}, "weight is nan"),
        ("prefixes", {"steer_candidates": 1}, "at least 2"),
        ("features", {}, "does not value prefixes; train one with objectives/goal_conditioned"),
        ("other", {}, "another vocabulary"),
        ("letters", {}, "another vocabulary"),
    ],
)
def test_what_cannot_steer_is_told_in_one_line(runs, prompts, tmp_path, by, options, message):
    with pytest.raises(UserError, match=message):
        written(runs, prompts, tmp_path, steer_by=runs[by] if by else "", **options)
    assert not (tmp_path / "out.jsonl").exists()
