"""The study of frontiers: which points count, measures at a KL, areas, and one tiny job of each kind."""

import json

import pytest

from jaxalign.data import synthetic
from jaxalign.recipes.jobs import read_result, work
from studies import frontiers, frontiers_curves, frontiers_report
from studies.frontiers_tasks import BUNDLED, METHODS, TASKS


def measured(kl, reward, rewards=()):
    return {"kl": kl, "reward": reward, "length": 20.0, "distinct_2": 0.1, "rewards": list(rewards)}


def point(validation, test, **more):
    return {"validation": measured(*validation), "test": measured(*test), **more}


START = point((0.0, -0.5), (0.0, -0.4))


def test_a_frontier_is_chosen_on_validation_and_read_on_test():
    runs = [
        [point((0.5, -0.3), (0.6, -0.2)), point((2.0, -0.35), (2.1, 0.0))],
        [point((1.0, -0.1), (1.0, -0.3)), point((0.2, -0.6), (0.2, -0.1))],
    ]
    curve = frontiers_curves.frontier(runs, START)
    assert [each["test"]["kl"] for each in curve.points] == [0.0, 0.6, 1.0]
    assert curve.at(0.3) == pytest.approx(-0.3)
    assert curve.at(0.8) == pytest.approx(-0.25)
    assert curve.at(1.5) is None
    assert curve.at(0.8, split="validation") == pytest.approx(-0.3 + 0.2 * 0.6)
    assert curve.nearest(0.7)["test"]["reward"] == -0.2
    assert curve.nearest(2.0) is None


def test_the_area_is_the_mean_gain_and_constant_beyond_the_last_point():
    flat = frontiers_curves.frontier([[]], START)
    assert frontiers_curves.area(flat) == 0
    curve = frontiers_curves.frontier([[point((1.0, 0.5), (1.0, 0.6))]], START)
    # A gain of 1 is reached at KL 1 and kept until 2.
    assert frontiers_curves.area(curve) == pytest.approx(0.75)
    assert frontiers_curves.area(curve, "test", largest=1.0) == pytest.approx(0.5)


def test_ties_are_half_wins():
    first, second = (point((1, 0), (1, 0, rewards)) for rewards in ([0, -1, -1], [-1, -1, 0]))
    assert frontiers_curves.win_rate(first, second) == 0.5
    assert frontiers_curves.win_rate(first, first) == 0.5


def test_a_strict_annotator_changes_no_order_within_an_act():
    acts, samples = ["inform hotel ( name = royal oak ; stars = two )"], [["royal oak", "nothing"]]
    plain, spread = (TASKS[name].records(acts, samples) for name in ("bundled", "bundled_spread"))
    gaps = [one.feedback[0] - other.feedback[0] for one, other in zip(plain, spread, strict=True)]
    assert gaps[0] == gaps[1]
    assert BUNDLED.reward(acts[0], "royal oak with two stars") == 0


TINY = frontiers.Size(
    sft_updates=4,
    checkpoints=(1, 2),
    acts=60,
    samples=2,
    judged={"validation": 4, "test": 5},
    rows={"triplets": 8, "pairs": 8},
    learning_rates=(1e-4,),
)


def run_of(strength):
    points = [
        point((0.1 * at, -0.5 + 0.1 * at), (0.1 * at, -0.4 + 0.1 * at, [-1, 0]), updates=at)
        for at in (1, 2, 4)
    ]
    return {"points": [each | {"strength": strength} for each in points], "start": START}


def test_the_page_has_measures_at_equal_kl_of_finished_methods(tmp_path):
    for seed in (0, 1):
        for strength in METHODS["dro_v"].strength[1]:
            folder = tmp_path / frontiers.run_name("bundled_spread", "dro_v", strength, seed)
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(run_of(strength)))
    page = frontiers_report.report(tmp_path, tmp_path)
    rows = [row for row in page.split("## bundled_spread")[1].splitlines() if "| dro_v |" in row]
    cells = [cell.strip() for cell in rows[0].split("|")]
    assert cells[2:4] == ["-0.300 ± 0.000", "-0.150 ± 0.000"] and cells[4] == "-"
    assert cells[8].endswith("(edge)") and cells[10] == "2"
    for name in ("frontiers.png", "frontiers_grid.png"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.slow
def test_one_run_of_the_bundled_task(tmp_path, monkeypatch):
    acts = {"train": 300, "validation": 8, "test": 8}
    monkeypatch.setattr("studies.frontiers_tasks.BUNDLED_ACTS", acts)
    jobs = {job.name: job for job in frontiers.jobs(tmp_path, tmp_path, TINY)}

    def with_needs(name):
        return [each for need in jobs[name].needs for each in with_needs(need)] + [name]

    name = "bundled_spread/dro_v/0.1/seed0"
    names = list(dict.fromkeys(with_needs(name)))
    before = names.index("bundled_spread/forms/seed0")
    work(tmp_path, [jobs[each] for each in names[:before]])
    # A policy of four updates does not end its responses.
    file = tmp_path / "bundled/samples/seed0/samples.json"
    acts, _ = json.loads(file.read_text())
    records = synthetic.make_records("triplet", acts)
    file.write_text(json.dumps([acts, [[each.responses[0]] for each in records]]))
    work(tmp_path, [jobs[each] for each in names])
    found = read_result(tmp_path, name)
    assert [each["updates"] for each in found["points"]] == [1, 2]
    assert found["points"][1]["test"]["kl"] > 0 == found["start"]["test"]["kl"]
    assert len(found["points"][0]["test"]["rewards"]) == 5
