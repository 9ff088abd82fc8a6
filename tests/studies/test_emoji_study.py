"""The study of emoji: a complete graph, data without leaks, and the page of a study that has not run."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from studies import emoji_data, emoji_retrieval, emoji_retrieval_report


def test_every_job_has_what_it_needs_and_a_name_of_its_own(tmp_path):
    jobs = emoji_retrieval.jobs(tmp_path, tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for position, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:position])


def test_the_page_of_a_study_that_has_not_run_names_all_arms(tmp_path):
    page = emoji_retrieval_report.report(tmp_path, tmp_path / "page.png")
    for arm in (*emoji_retrieval.ARMS, emoji_retrieval.NO_TRIE, *emoji_retrieval.BASELINES):
        assert f"`{arm}` (0)" in page


def test_the_page_shows_what_has_finished(tmp_path):
    numbers = {"R@1": 0.5, "R@5": 0.6, "R@10": 0.7, "MRR": 0.55, "cluster@1": 0.6}
    result = {
        **numbers,
        "validity": 1.0,
        "curve": [0.5] * 10,
        "statistics": {"unique": 0.25},
    }
    folder = tmp_path / "image" / "seed0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    page = emoji_retrieval_report.report(tmp_path, tmp_path / "page.png")
    assert "| image | 0.500 | 0.600 | 0.700 | 0.550 | 0.600 | 0.250 | 1.000 | 1 |" in page
    assert (tmp_path / "page.png").stat().st_size


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji")
    lines = [
        {
            "item": i,
            "name": f"{i:X}",
            "label": f"thing number {i}",
            "tags": ["alpha", "beta", f"tag{i}", "delta"],
            "train_queries": [f"thing number {i}", f"object {i}"],
            "test_queries": [f"unseen {i}"],
        }
        for i in range(80)
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    np.savez(folder / "images.npz", images=np.zeros((80, 2, 2, 3), np.uint8))
    emoji_data.write_data(folder, folder / "data", 60)
    return folder / "data"


def read(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_test_query_is_trained_on_and_held_out_items_are_unknown(written):
    trained = {x["query"] for name in ("train", "pseudo") for x in read(written / f"{name}.jsonl")}
    assert not trained & {x["query"] for x in read(written / "test.jsonl")}
    old = {x["item"] for x in read(written / "old_items.jsonl")}
    new = {x["item"] for x in read(written / "new_test.jsonl")}
    assert len(old) == 72 and len(new) == 8 and not old & new
    for name in ("old_train", "old_pseudo", "old_test"):
        assert {x["item"] for x in read(written / f"{name}.jsonl")} <= old
    assert np.load(written / "text.npy").shape[0] == 80


def test_the_script_holds_out_short_codes_and_never_the_label(repository):
    script = runpy.run_path(str(repository / "scripts" / "emoji_data.py"))
    codes = {"github": {"1F603": "smiley"}, "cldr": {"1F603": ["grinning_face_with_big_eyes"]}}
    train, test = script["queries"]("1F603", "grinning face with big eyes", codes)
    assert train == ["grinning face with big eyes"] and test == ["smiley"]
