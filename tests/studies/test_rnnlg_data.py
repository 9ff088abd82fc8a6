"""The data of the RNNLG study: splits by act, exact feedback, and the same annotations in every form."""

import json

from studies import rnnlg_data


def test_no_act_is_in_two_splits_and_feedback_is_exact(shared_dir, tmp_path):
    counts = rnnlg_data.prepare(shared_dir / "data", tmp_path, 1000)
    acts = {split: set(rnnlg_data.acts(tmp_path, split, judged_only=False)) for split in counts}
    assert not acts["train"] & acts["validation"]
    assert not acts["train"] & acts["test"]
    assert not acts["validation"] & acts["test"]
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").open()]
    prompts, responses = zip(*((row["prompt"], row["response"]) for row in rows), strict=True)
    assert rnnlg_data.slot_error_rate(prompts, responses) < 0.01
    act = "inform(name=SLOT_NAME;area=SLOT_AREA)"
    assert rnnlg_data.feedback(act, "SLOT_NAME is in SLOT_AREA") == 0
    assert rnnlg_data.feedback(act, "SLOT_NAME is nice") == -0.5
    assert rnnlg_data.feedback(act, "SLOT_NAME in SLOT_AREA near SLOT_NEAR") == -0.5


def test_all_forms_come_from_the_same_annotations(tmp_path):
    act = "inform(name=SLOT_NAME;area=SLOT_AREA)"
    samples = ["SLOT_NAME is in SLOT_AREA", "SLOT_NAME is nice", "it is nice", " "]
    counts = rnnlg_data.write_feedback(tmp_path, "train", [act], [samples])

    def rows(name):
        return [json.loads(line) for line in (tmp_path / f"{name}.train.jsonl").open()]

    assert counts["responses"] == 3  # the empty response is left out
    assert [row["feedback"] for row in rows("triplets")] == [0, -0.5, -1]
    assert [(row["chosen"], row["rejected"]) for row in rows("pairs")] == [(samples[0], samples[2])]
    assert [row["response"] for row in rows("filtered")] == [samples[0]]  # above the mean of -0.5
    assert [row["response"] for row in rows("best")] == [samples[0]]
