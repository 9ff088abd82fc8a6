"""Policies on a reward of features: ranks, rewards that order, and a page of what has finished."""

import json

import numpy as np
import pytest

from studies import feature_reward_policy as study
from studies import feature_reward_policy_report
from studies.feature_reward_policy import FEATURES, REWARDS, ranks


def test_ranks_are_shares_of_lower_scores_and_ties_count_half():
    found = ranks(np.array([0.0, 1.0, 2.0, 1.5]), np.array([0.0, 1.0, 1.0, 2.0]))
    assert found.tolist() == [0.125, 0.5, 0.875, 0.75]
    scores = np.random.default_rng(0).normal(size=50)
    assert ranks(scores, scores).mean() == pytest.approx(0.5)
    # A monotone map changes no rank.
    np.testing.assert_array_equal(ranks(np.exp(scores), np.exp(scores)), ranks(scores, scores))


def test_phi_judges_a_text_by_its_features_and_the_exact_reward_by_slots(tmp_path):
    acts = [f"inform(name=SLOT_NAME;area=part{number})" for number in range(40)]
    rows = [
        {"prompt": act, "chosen": f"SLOT_NAME is in part{number}", "rejected": "it is there there"}
        for number, act in enumerate(acts)
    ]
    scores = study._pair_scores(rows)
    assert scores.shape == (40, 2, len(FEATURES))
    np.save(tmp_path / "phi.npy", scores[:, 0].mean(0) - scores[:, 1].mean(0))
    reward = study.reward_of(
        tmp_path, "phi", 0, ["inform(name=SLOT_NAME;area=x)"] * 2, ["SLOT_NAME in x", "there there"], job=tmp_path
    )  # fmt: skip
    assert reward[0] > reward[1]
    exact = study.reward_of(tmp_path, "exact", 0, ["inform(name=SLOT_NAME)"], ["SLOT_NAME"])
    assert exact.tolist() == [1.0]


def test_the_page_shows_what_has_finished(tmp_path):
    assert "`dro_v, phi` (0)" in feature_reward_policy_report.report(tmp_path)
    measures = dict.fromkeys(feature_reward_policy_report._MEASURES, 0.5)
    policy = {
        **measures,
        "reward": 0.75,
        "own_reward": 0.9,
        "own_reward_of_start": 0.6,
        "start": measures,
    }
    rewards = {
        "accuracy": {"phi": 0.8, "t5": 0.6},
        "held_out_pairs": 100,
        "phi": dict.fromkeys(FEATURES, 1.0),
    }
    results = {
        "rewards/seed0": rewards,
        "dro_v/phi/seed0": policy,
        **{f"prepared/{reward}/seed0": {"correlation": 0.4, "dropped": 0.5} for reward in REWARDS},
    }
    for name, result in results.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    page = feature_reward_policy_report.report(tmp_path, tmp_path / "page.png")
    row = next(line for line in page.splitlines() if "`dro_v, phi`" in line)
    assert "0.250" in row and "0.600" in row and "0.900" in row
    assert "`dro_v, phi` (1)" in page and (tmp_path / "page.png").stat().st_size
