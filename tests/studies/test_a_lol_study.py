"""The study of A-LoL: exact shares of corrupted responses, the reward of slots, and a page of what has finished."""

import json

import numpy as np
import pytest

from studies import a_lol, a_lol_report
from studies.rnnlg_runs import goodness


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_a_share_of_the_texts_is_exchanged_and_none_is_lost(share):
    texts = [f"text {number}" for number in range(200)]
    found = a_lol.exchanged(texts, share, np.random.default_rng(0))
    assert sum(one != other for one, other in zip(texts, found, strict=True)) == 200 * share
    assert sorted(found) == sorted(texts)


def test_the_corrupted_responses_have_lower_rewards_and_other_arms_read_the_same(tmp_path):
    (tmp_path / "data").mkdir()
    acts = [
        f"inform(name=SLOT_NAME;{slot}=SLOT_{slot.upper()})" for slot in ("phone", "area", "food")
    ]
    rows = [
        {"prompt": act, "response": f"SLOT_NAME and SLOT_{act.partition('SLOT_NAME;')[2].partition('=')[0].upper()}"}
        for act in acts
    ]  # fmt: skip
    (tmp_path / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards = {}
    for share in (0, 100):
        job = tmp_path / f"{share}"
        job.mkdir()
        result = a_lol._corrupt(tmp_path, a_lol.Size(logged=2), f"{share}/seed0", job)
        rewards[share] = result["reward"]
        triplets = [json.loads(line) for line in (job / "triplets.jsonl").read_text().splitlines()]
        assert result["moved"] == share / 100 and len(triplets) == 2
        for row in triplets:
            assert row["feedback"] == goodness(row["prompt"], row["response"])
    assert rewards[0] == 1.0
    # One of two slots is missing, and one is invented.
    assert rewards[100] == 0.0


def test_the_reward_is_never_negative():
    act = "inform(name=SLOT_NAME)"
    assert goodness(act, "SLOT_NAME") == 1.0
    assert goodness(act, "SLOT_AREA SLOT_PHONE") == 0.0


def test_the_page_shows_what_has_finished(tmp_path):
    assert "`a_lol_kl, 50 %` (0)" in a_lol_report.report(tmp_path)
    measures = dict.fromkeys(a_lol_report._MEASURES, 0.5)
    value = {"mean": 0.8, "deviation": 0.1, "dropped": 0.25}
    results = {
        "sft/50/seed0": measures,
        "corrupted/50/seed0": {"reward": 0.7},
        "prepared/50/seed0": dict.fromkeys(a_lol.VALUES, value),
        "nll/50/seed0": measures,
        "a_lol_greedy/50/seed0": {**measures, "reward": 0.75},
        "a_lol_greedy/50/seed1": {**measures, "reward": 0.75},
    }
    for name, result in results.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    page = a_lol_report.report(tmp_path, tmp_path / "page.png")
    # The second seed has no arm to be compared with.
    assert "| 0.250 " in page and "0.750 ± 0.000" in page
    assert "`a_lol_greedy, 50 %` (2)" in page and (tmp_path / "page.png").stat().st_size
