"""Sweeps: the trials that values make, processes that are not repeated, and a table whose numbers are those of the runs."""

import json
import sys

import pytest

from jaxalign.cli.main import main
from jaxalign.errors import UserError
from jaxalign.recipes import sweep_trials
from jaxalign.recipes.sweep import sweep
from jaxalign.recipes.sweep_trials import Trial, join_values, parse_values, trials_of

# Stands for `jaxalign train`: the loss is (rate - 0.3)^2 + seed / 100; the rate 9 fails.
TRAIN = """
import json, pathlib, sys
flags = dict(word.removeprefix("--gin.").removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(flags["MODEL_DIR"])
rate = float(flags["DROV.rate"])
print("launched")
if rate == 9:
    print("jaxalign: the rate is too large")
    sys.exit(2)
loss = (rate - 0.3) ** 2 + float(flags.get("RANDOM_SEED", 0)) / 100
lines = [{"step": 1, "split": "validation", "loss": loss + 1}, {"step": 2, "split": "validation", "loss": loss}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "networks.json").touch()
(folder / "summary.json").write_text(json.dumps({"step": 2, "train_steps": 2, "flags": sys.argv[1:]}))
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    monkeypatch.setattr(sweep_trials, "TRAIN", (sys.executable, str(program)))
    return tmp_path / "sweep"


def launches(folder):
    return sum(path.read_text().count("launched") for path in folder.glob("trials/*/log.txt"))


def test_values_are_lists_or_ranges_and_commas_inside_brackets_are_theirs():
    parts = [
        "KTO.beta=0.1",
        "0.3",
        "ROW={'a': 1",
        "'b': 2}",
        "None",
        "LR=log_uniform(1e-5",
        "1e-3)",
    ]
    parsed = dict(map(parse_values, join_values(parts)))
    assert parsed["KTO.beta"] == ["0.1", "0.3"]
    assert parsed["ROW"] == ["{'a': 1,'b': 2}", "None"]
    assert (parsed["LR"].low, parsed["LR"].high, parsed["LR"].logarithmic) == (1e-5, 1e-3, True)


def test_trials_are_all_combinations_or_a_reproducible_part_of_them():
    values = {"A": ["1", "2", "3"], "B": ["x", "y"]}
    everything = [dict(trial.values) for trial in trials_of(values, 0, 0)]
    assert len(everything) == 6 and len({json.dumps(each) for each in everything}) == 6
    some = [trial.name for trial in trials_of(values, 4, 1)]
    assert len(set(some)) == 4 and some == [trial.name for trial in trials_of(values, 4, 1)]
    drawn = trials_of(dict([parse_values("A=log_uniform(1e-4, 1e-2)")]), 50, 0)
    found = [float(trial.values["A"]) for trial in drawn]
    assert 1e-4 <= min(found) < 3e-4 and 3e-3 < max(found) <= 1e-2
    # Values that a file name cannot hold.
    names = {Trial({"A": value}).name for value in ("a/b", "a b", "../a b")}
    assert len(names) == 3 and not any("/" in name or " " in name for name in names)


def test_runs_are_ranked_averaged_over_seeds_and_not_repeated(trainer, capsys):
    options = {"train_arguments": ["--gin_file=my.gin"], "workers": 2}
    values = ["DROV.rate=0.1,0.2,0.6", "RANDOM_SEED=0,2"]
    content = sweep(str(trainer), values, **options)
    assert [row["values"] for row in content["ranked"]] == [
        {"DROV.rate": rate} for rate in ("0.2", "0.1", "0.6")
    ]
    best = content["ranked"][0]
    assert best["mean"] == pytest.approx(0.02) and best["runs"] == 2 and best["steps"] == [2, 2]
    assert best["deviation"] == pytest.approx(0.02 / 2**0.5)
    assert "Best: `--gin.DROV.rate=0.2`" in content["report"] and "edge" not in content["report"]
    assert "losses with different values measure different things" in content["report"]
    assert launches(trainer) == 6 and (trainer / "sweep.png").stat().st_size > 1000
    summary = json.loads(next(trainer.glob("trials/*/summary.json")).read_text())
    assert summary["flags"][0] == "--gin_file=my.gin"
    # A larger sweep keeps the trials that it has.
    content = sweep(str(trainer), ["DROV.rate=0.1,0.2,0.25", "RANDOM_SEED=0,2"], **options)
    assert launches(trainer) == 8
    assert "At the edge of what was tried" in content["report"]
    assert "DROV.rate (0.25)" in content["report"]
    with pytest.raises(UserError, match="a sweep with other train_arguments"):
        sweep(str(trainer), values)


def test_a_failed_trial_is_named_and_tried_again_and_the_others_count(trainer):
    content = sweep(str(trainer), ["DROV.rate=0.2,9"])
    assert content["failed"][0]["told"] == "jaxalign: the rate is too large"
    assert len(content["ranked"]) == 1 and "too large" in (trainer / "sweep.md").read_text()
    sweep(str(trainer), ["DROV.rate=0.2,9"])
    assert launches(trainer) == 3
    with pytest.raises(UserError, match=r"no trial ended well; .*the rate is too large"):
        sweep(str(trainer), ["DROV.rate=9"])


def test_flags_can_be_corrected_as_long_as_nothing_was_trained(trainer):
    with pytest.raises(UserError, match="no trial ended well"):
        sweep(str(trainer), ["DROV.rate=9"], train_arguments=["--wrong=1"])
    sweep(str(trainer), ["DROV.rate=0.2"], train_arguments=["--right=1"])
    with pytest.raises(UserError, match="other train_arguments"):
        sweep(str(trainer), ["DROV.rate=0.2"], train_arguments=["--wrong=1"])


def test_the_command_passes_gin_files_and_settings_on(trainer, capsys):
    arguments = ["--gin_file=my.gin", "--TRAIN_STEPS=2", "--values=DROV.rate=0.2,0.4"]
    assert main(["sweep", f"--output_dir={trainer}", *arguments]) == 0
    summary = json.loads(next(trainer.glob("trials/*/summary.json")).read_text())
    assert summary["flags"][:2] == ["--gin_file=my.gin", "--gin.TRAIN_STEPS=2"]
    assert "| DROV.rate |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["rate"], {}, "not of the form NAME=a,b,c"),
        (["A=1,1"], {}, "give different values"),
        (["A="], {}, "give different values"),
        (["A=uniform(2, 1)"], {}, "needs low < high"),
        (["A=log_uniform(0, 1)"], {}, "needs 0 < low < high"),
        (["A=uniform(0, 1)"], {}, "give their number with --trials"),
        (["A=1,2"], {"trials": 3}, "exceeds the 2 combinations"),
        (["A=1", "A=2"], {}, "names A twice"),
        (["MODEL_DIR=a,b"], {}, "a folder of its own"),
        (["DROV.rate=0.2"], {"metric": "validation/bleu"}, "did not measure 'validation/bleu'; it has validation/loss"),
        (["DROV.rate=0.2"], {"mode": "best"}, "mode"),
    ],
)  # fmt: skip
def test_mistakes_are_told(trainer, values, options, message):
    with pytest.raises(UserError, match=message):
        sweep(str(trainer), values, **options)
