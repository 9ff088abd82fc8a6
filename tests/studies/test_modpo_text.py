"""The study of several objectives on text: exact scores, pairs and margins, hypervolumes, soups, and a page of what has finished."""

import json

import numpy as np
import pytest

from jaxalign.evaluation.pareto import hypervolume
from studies import modpo_text, modpo_text_report
from studies.modpo_text_margins import accuracy
from studies.modpo_text_scores import (
    OBJECTIVES,
    Scorer,
    best_of,
    mean_params,
    ordered_pairs,
    volume,
    with_margins,
    word_f1,
)

ROWS = [
    {
        "prompt": "act",
        "responses": ["first", "second"],
        "scores": [
            {"brevity": -2.0, "likeness": 0.5, "slots": 0.0},
            {"brevity": -1.0, "likeness": 0.5, "slots": -1.0},
        ],
    }
]


def test_scores_are_exact(tmp_path):
    row = {"prompt": "inform(name=SLOT_NAME)", "response": "SLOT_NAME is nice"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    found = Scorer(tmp_path, "test").scores(row["prompt"], "SLOT_AREA is very nice", 7)
    assert found == {"brevity": -0.7, "likeness": pytest.approx(4 / 7), "slots": -2.0}
    assert word_f1("a a b", "a c") == pytest.approx(2 / 5)
    assert word_f1("a", "b") == 0.0


def test_pairs_are_labelled_by_one_objective_and_ties_are_left_out():
    chosen = {name: [pair["chosen"] for pair in ordered_pairs(ROWS, name)] for name in OBJECTIVES}
    assert chosen == {"brevity": ["second"], "likeness": [], "slots": ["first"]}


def test_margins_replace_the_scores_of_other_objectives_alone():
    rewards = {"brevity": np.array([[0.1, 0.7]])}
    (row,) = with_margins(ROWS, rewards)
    assert [each["brevity"] for each in row["scores"]] == [0.1, 0.7]
    assert [each["slots"] for each in row["scores"]] == [0.0, -1.0]
    assert ROWS[0]["scores"][0]["brevity"] == -2.0
    assert accuracy(ROWS, "brevity", rewards["brevity"]) == 1.0
    assert accuracy(ROWS, "slots", rewards["brevity"]) == 0.0


def test_the_volume_of_boxes_is_that_of_their_union():
    boxes = np.array([[2.0, 2.0, 1.0], [1.0, 1.0, 3.0], [0.5, 0.5, 0.5]])
    assert volume(boxes, np.zeros(3)) == pytest.approx(2 * 2 * 1 + 1 * 1 * 2)
    assert volume(boxes - 5, np.full(3, -5.0)) == pytest.approx(6)
    # A point that does not exceed the corner in every objective adds nothing.
    assert volume(np.array([[3.0, 3.0, -1.0]]), np.zeros(3)) == 0


def test_the_volume_of_random_points_is_the_share_of_the_cube_that_they_dominate():
    generator = np.random.default_rng(0)
    points = generator.random((6, 3))
    drawn = generator.random((200_000, 3))
    dominated = (points[:, None] >= drawn).all(axis=2).any(axis=0).mean()
    assert volume(points, np.zeros(3)) == pytest.approx(dominated, abs=5e-3)
    # A flat third objective leaves an area.
    flat = np.concatenate([points[:, :2], np.ones((6, 1))], axis=1)
    assert volume(flat, np.zeros(3)) == pytest.approx(hypervolume(points[:, :2], np.zeros(2)))


def test_the_best_sample_has_the_highest_weighted_reward_in_units_of_deviations():
    rewards = np.array([[[0.0, 1.0, 2.0]], [[300.0, 200.0, 0.0]]])
    assert best_of(rewards, (1.0, 0.0)).tolist() == [2]
    assert best_of(rewards, (0.0, 1.0)).tolist() == [0]
    assert best_of(rewards * np.array([5.0, 0.01])[:, None, None], (0.5, 0.5)).tolist() == [1]


def test_a_soup_is_the_weighted_mean_of_parameters():
    params = [{"kernel": np.full(2, value)} for value in (1.0, 2.0, 4.0)]
    np.testing.assert_allclose(mean_params(params, (0.5, 0.0, 0.5))["kernel"], 2.5)


def test_weightings_are_on_the_simplex_and_give_the_labels_a_weight():
    for weighting in modpo_text.WEIGHTINGS.values():
        assert sum(weighting) == pytest.approx(1) and weighting[OBJECTIVES.index("slots")] > 0


def test_the_page_shows_finished_fronts_and_their_costs(tmp_path):
    assert "`soup` (0)" in modpo_text_report.report(tmp_path)

    def point(height):
        scores = {"brevity": height - 3, "likeness": height, "slots": height - 1}
        return {"scores": scores, "kl": height, "updates": 100, "flops": 2e12}

    places = range(len(modpo_text.WEIGHTINGS))
    results = {
        **{f"modpo/modpo_scalar/{place}/seed0": point(0.5) for place in places},
        **{f"modpo/weighted_losses/{place}/seed0": point(0.25) for place in places},
        **{f"modpo/reward_{each}/seed0": point(0) for each in ("brevity", "likeness")},
        # A front that lacks a policy is not shown.
        "modpo/modpo_implicit/0/seed0": point(0.9),
    }
    for name, result in results.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    page = modpo_text_report.report(tmp_path, tmp_path / "page.png")
    assert "`modpo_implicit` (0)" in page and "| all three" in page
    costs = page.partition("## Cost")[2]
    # Four policies and two reward models.
    assert "150.000" in costs and "3.000" in costs and "`soup`" not in costs.partition("![")[0]
    fronts = page.partition("## Fronts")[2].partition("## Margins")[0]
    assert "0.062" in fronts and "0.016" in fronts
    assert (tmp_path / "page.png").stat().st_size
