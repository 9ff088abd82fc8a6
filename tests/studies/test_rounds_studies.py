"""The studies of rounds: their graphs are complete, their arms are built, and pages are written from what has finished."""

import json

import pytest

from studies import rounds_iterative, rounds_report, rounds_selm, rounds_spa
from studies.rounds_arms import SEEDS, random_scores, training_of

STUDIES = {"spa": rounds_spa, "selm": rounds_selm, "iterative": rounds_iterative}


@pytest.mark.parametrize("name", STUDIES)
def test_every_job_has_what_it_needs_and_a_name_of_its_own(name, tmp_path):
    jobs = STUDIES[name].jobs(tmp_path, tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for position, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:position])


def test_every_arm_builds_its_objective_with_the_values_of_a_round():
    for arm in {**rounds_spa.ARMS, **rounds_selm.ARMS, **rounds_iterative.ARMS}.values():
        values = {name: values[0] for name, values in arm.per_round.items()}
        keywords = training_of(arm)({**values, "TRAIN_STEPS": 7}).keywords
        assert keywords["loop"].train_steps == 7
        for name, value in {**arm.macros, **values}.items():
            found = keywords["objective"]
            known = getattr(found, "loss_function", found)
            options = getattr(known, "keywords", None) or vars(known)
            assert options[name.lower()] == value


def test_random_labels_do_not_depend_on_the_order_of_questions():
    first = random_scores(["p", "q"], ["a", "b"], None)
    assert first == random_scores(["q", "p"], ["b", "a"], None)[::-1]


def test_a_page_shows_finished_arms_and_names_the_others(tmp_path):
    for seed in SEEDS[:2]:
        folder = tmp_path / f"spa/seed{seed}"
        folder.mkdir(parents=True)
        rounds = [
            {"round": "start", "reward": -0.3, "kl_to_start": 0.0, "length": 20.0},
            {"round": "1", "reward": -0.2 - 0.1 * seed, "kl_to_start": 1.0, "length": 21.0},
        ]
        (folder / "result.json").write_text(json.dumps({"rounds": rounds}))
    page = rounds_report.report("spa", tmp_path, tmp_path / "page.png")
    assert "| `spa` | 1 | -0.250 ± 0.071 |" in page
    assert "`spa` (2)" in page and "`oracle` (0)" in page
    assert (tmp_path / "page.png").stat().st_size


def test_the_page_of_selm_has_the_log_probability_of_the_starts_responses_where_it_was_scored(
    tmp_path,
):
    arm = "normal_alpha0.1"
    rounds = [
        {"round": name, "reward": -0.3, "kl_to_start": 0.0, "length": 20.0}
        for name in ("start", "1")
    ]
    results = {arm: {"rounds": rounds}, f"start_log_probs/{arm}": {"log_probs": {"1": -12.5}}}
    for name, result in results.items():
        folder = tmp_path / name / "seed0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    page = rounds_report.report("selm", tmp_path, tmp_path / "page.png")
    lines = [line for line in page.splitlines() if line.startswith(f"| `{arm}`")]
    assert [line.split("|")[-3].strip() for line in lines] == ["-", "-12.50"]
    assert "label accuracy" not in page
