"""Markdown reports: aggregation over seeds and the tables they make."""

import json

import pytest

from jaxalign.errors import UserError
from jaxalign.evaluation.report import report
from jaxalign.evaluation.report_records import aggregate, without_seed


def evaluation(rewards):
    def policy(value):
        return {
            "rewards": {"length": {"mean": value}},
            "kl": {"mean": 2 * value},
            "length": 9.5,
            "ranking": {
                "longer wins": {
                    "spearman": 0.5,
                    "within_prompt_spearman": None,
                    "auc": 0.25,
                    "pairwise_accuracy": 1.0,
                    "pairs": 3,
                }
            },
        }

    return {
        "settings": {"judges": ["length"], "num_prompts": 40},
        "policies": {name: policy(value) for name, value in rewards.items()},
        "win_rates": {
            "length": {
                a: {b: {"mean": float(x > y)} for b, y in rewards.items() if b != a}
                for a, x in rewards.items()
            }
        },
    }


def test_seeds_become_mean_and_deviation(tmp_path):
    for seed, reward in enumerate([1.0, 3.0]):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        content = evaluation({"sft": 0.0, f"dro-seed{seed}": reward})
        (folder / "evaluation.json").write_text(json.dumps(content))
    text = report([str(tmp_path)], str(tmp_path / "out" / "table.md"), title="Results", digits=2)
    assert (tmp_path / "out" / "table.md").read_text() == text
    lines = text.splitlines()
    assert "# Results" in lines
    for table in (
        ["| policy | number of prompts | seeds | reward |", "| dro | 40 | 2 | 2.00 ± 1.41 |"],
        ["| policy | number of prompts | seeds | tokens |", "| dro | 40 | 2 | 9.50 ± 0.00 |"],
        ["| policy | number of prompts | seeds | KL |", "| dro | 40 | 2 | 4.00 ± 2.83 |"],
        ["| policy | over | number of prompts | seeds | win rate |"],
    ):
        assert set(table) <= set(lines)
    assert "| sft | 40 | 2 | 0.00 ± 0.00 |" in lines
    assert "| dro | sft | 40 | 2 | 1.00 ± 0.00 |" in lines
    assert "| longer wins | 40 | 2 | 0.50 ± 0.00 | - | 0.25 ± 0.00 | 1.00 ± 0.00 | 3 |" in lines


def write_evaluation(folder, content):
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(content))
    return str(folder)


def test_different_judges_are_never_averaged(tmp_path):
    runs = []
    for index, judge in enumerate(["reward_model:runs/a", "reward_model:runs/b"]):
        content = evaluation({"sft": 0.0, "dro": float(index)})
        content["settings"]["judge_specs"] = [judge]
        runs.append(write_evaluation(tmp_path / f"e{index}", content))
    lines = report(runs, digits=1).splitlines()
    assert "| policy | judge | number of prompts | seeds | reward |" in lines
    assert "| dro | reward_model:runs/a | 40 | 1 | 0.0 |" in lines
    assert "| dro | reward_model:runs/b | 40 | 1 | 1.0 |" in lines


def test_evaluations_on_fewer_prompts_are_never_averaged(tmp_path):
    runs = []
    for count in (40, 7):
        content = evaluation({"sft": 0.0, "dro": float(count)})
        content["settings"]["num_prompts"] = count
        runs.append(write_evaluation(tmp_path / f"e{count}", content))
    lines = report(runs, digits=1).splitlines()
    assert {"| dro | 40 | 1 | 40.0 |", "| dro | 7 | 1 | 7.0 |"} <= set(lines)


def test_the_reference_has_no_distance_from_itself(tmp_path):
    content = evaluation({"sft": 0.0})
    content["policies"]["sft"]["is_reference"] = True
    text = report([write_evaluation(tmp_path / "e", content)])
    assert "| sft | 40 | 1 | reference |" in text
    assert "`reference` is the reference itself" in text


def test_no_table_is_wider_than_a_page_and_columns_are_chosen_by_their_names(tmp_path):
    content = evaluation({f"policy {i}": float(i) for i in range(9)})
    for policy in content["policies"].values():
        policy |= {"unfinished": 0.1, "distinct_1": 0.2, "distinct_2": 0.3, "cut_prompts": 0.0}
        policy |= {"slot_error_rate": 0.5, "unknown_pieces": 0.1, "value": {"correlation": 0.5}}
    runs = [write_evaluation(tmp_path / "e", content)]
    run = tmp_path / "run"
    run.mkdir()
    metrics = {f"metric {i}": float(i) for i in range(20)}
    summary = {"step": 1, "train": metrics, "evaluation": {"validation": metrics}}
    (run / "summary.json").write_text(json.dumps(summary))
    text = report([*runs, str(run)])
    assert max(line.count("|") - 1 for line in text.splitlines()) <= 12
    # Nothing is lost: every metric of the evaluation has its column.
    assert all(f"| {name} " in text for name in metrics)
    names = ["KL", "reward", "win rate vs policy 0", "evaluation/validation/metric 3"]
    lines = report([*runs, str(run)], columns=names, digits=1).splitlines()
    assert "| policy | KL | reward | win rate vs policy 0 |" in lines
    assert "| policy 2 | 4.0 | 2.0 | 1.0 |" in lines
    assert "| run | evaluation/validation/metric 3 |" in lines


def test_one_checkpoint_evaluated_twice_is_one_seed(tmp_path):
    runs = []
    for index, path in enumerate(["runs/0", "runs/0", "runs/1"]):
        content = evaluation({"dro": float(index)})
        content["policies"]["dro"] |= {"checkpoint": path, "step": 3}
        runs.append(write_evaluation(tmp_path / f"e{index}", content))
    lines = report(runs, digits=2).splitlines()
    # The first checkpoint has 0.5 on average, the second 2.
    assert "| dro | 40 | 2 | 3 | 1.25 ± 1.06 |" in lines


def test_a_single_evaluation_shows_its_intervals(tmp_path):
    content = evaluation({"sft": 0.0, "dro": 1.0})
    content["win_rates"]["length"]["dro"]["sft"] |= {"low": 0.75, "high": 1.0}
    content["policies"]["dro"]["rewards"]["length"] |= {"low": 0.5, "high": 1.5}
    content["policies"]["dro"]["kl"]["standard_error"] = 0.5
    content["policies"]["dro"]["ranking"]["longer wins"] |= {"auc_low": 0.0, "auc_high": 0.5}
    del content["policies"]["sft"]["ranking"]
    lines = report([write_evaluation(tmp_path / "e", content)], digits=2).splitlines()
    assert "| dro | 40 | 1 | 1.00 [0.50, 1.50] |" in lines
    assert "| dro | sft | 40 | 1 | 1.00 [0.75, 1.00] |" in lines
    assert "| dro | 40 | 1 | 2.00 [1.02, 2.98] |" in lines
    assert "| longer wins | 40 | 1 | 0.50 | - | 0.25 [0.00, 0.50] | 1.00 | 3 |" in lines


def test_three_policies_get_a_head_to_head_table(tmp_path, capsys):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation({"a": 1.0, "b": 2.0, "c": 0.0})))
    lines = report([str(path)], digits=1).splitlines()
    assert "| row over column (number of prompts 40) | a | b | c |" in lines
    assert "| b | 1.0 | - | 1.0 |" in lines
    assert "row over column" in capsys.readouterr().out


def test_run_folders_are_reported_by_their_summary(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"dro_seed{seed}"
        folder.mkdir()
        summary = {
            "objective": "dro_v",
            "step": 100,
            "train": {"loss": 1.0 + seed},
            "evaluation": {"validation": {"loss": 2.0}},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    lines = report([str(tmp_path)], columns=["step", "train/loss"], digits=1).splitlines()
    assert "| run | step | train/loss |" in lines
    assert "| dro | 100 | 1.5 ± 0.7 |" in lines
    with pytest.raises(UserError, match="no column speed"):
        report([str(tmp_path)], columns=["speed"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dro-seed0", "dro"),
        ("dro_seed12", "dro"),
        ("dro/seed2", "dro"),
        ("dro-s3", "dro"),
        ("dro", "dro"),
        ("tau0.3", "tau0.3"),
        ("seed1", "seed1"),
    ],
)
def test_trailing_seeds_are_no_part_of_a_name(name, expected):
    assert without_seed(name) == expected


def test_text_that_differs_is_a_dash_and_a_single_seed_has_no_deviation():
    rows = aggregate(
        [{"k": "a", "x": 1.5, "t": "u"}, {"k": "b", "t": "u"}, {"k": "b", "t": "v"}], by=("k",)
    )
    assert rows == [
        {"k": "a", "seeds": 1, "x": "1.500", "t": "u"},
        {"k": "b", "seeds": 2, "t": None},
    ]


def test_a_file_that_is_no_report_is_not_replaced(tmp_path):
    run = write_evaluation(tmp_path / "e", evaluation({"sft": 0.0}))
    page = tmp_path / "page.md"
    report([run], str(page))
    assert report([run], str(page)) == page.read_text()
    page.write_text("# My notes\n")
    with pytest.raises(UserError, match="was not written by `jaxalign report`"):
        report([run], str(page))
    assert page.read_text() == "# My notes\n"


def test_what_is_no_result_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        report([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="holds neither"):
        report([str(tmp_path)])
    for content, message in (
        ("{}", "lacks settings, policies, win_rates"),
        ("[]", "must hold a JSON object"),
        ('{"settings": {}, "policies": 1, "win_rates": {}}', "lacks policies"),
        ('{"settings": {}, "policies": {}, "win_rates": {}}', "lists no judges"),
    ):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(UserError, match=message):
            report([str(tmp_path)])
