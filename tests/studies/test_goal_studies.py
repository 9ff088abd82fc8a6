"""Studies of goal-conditioned reward models: complete graphs, measures of prefixes and votes, and pages of unfinished studies."""

import numpy as np

from jaxalign.annotation.prefixes import PrefixScores
from studies import (
    goal_conditioned,
    goal_conditioned_measures,
    goal_conditioned_report,
    goal_steering,
    goal_steering_report,
)


def test_prefixes_are_read_at_shares_of_the_tokens():
    values = np.arange(10.0).reshape(2, 5)
    mask = np.array([[True] * 5, [True, True, True, False, False]])
    assert goal_conditioned_measures.at_share(values, mask, 1.0).tolist() == [4, 7]
    assert goal_conditioned_measures.at_share(values, mask, 0.5).tolist() == [2, 6]


def test_a_filter_with_perfect_scores_makes_the_vote_right_and_saves_tokens():
    rows = [
        {"prompt": "q", "response": text, "feedback": feedback}
        for text, feedback in (("1", 0.0), ("1", 0.0), ("2", 1.0), ("3", 0.0))
    ]
    right = np.array([row["feedback"] > 0 for row in rows])
    mask = np.ones((4, 20), bool)
    values = np.where(right[:, None] | (np.arange(20) < 10), 1.0, -1.0)
    noise = np.zeros((4, 20))
    found = goal_conditioned_measures.votes(PrefixScores(values, noise, mask), rows, right)
    assert found["majority"] == 0.0
    assert found["q_at_0"] == [(10 * 3 + 20) / 80, 1.0, 0.75]
    # A constant score drops nothing at any threshold.
    assert {tuple(point) for point in found["curves"]["reward"]} == {(1.0, 0.0, 0.0)}


def test_pages_of_studies_that_have_not_run_have_all_arms(tmp_path, monkeypatch):
    for name in ("PREFIXES", "VOTES"):
        monkeypatch.setattr(goal_conditioned_report, name, tmp_path / f"{name}.png")
    page = goal_conditioned_report.report(tmp_path)
    for source in goal_conditioned.SOURCES:
        assert f"`{source.name}`" in page
        for size in source.sizes:
            assert f"| {size} |" in page
    steering = goal_steering_report.report(tmp_path)
    assert all(f"| {score} |" in steering for score in goal_steering.SCORES)
