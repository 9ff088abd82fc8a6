"""Every gin file in `gin_configs/` parses, resolves every name, and builds the configured objects."""

import functools
import re
from pathlib import Path

import gin
import jax
import pytest

from jaxalign.cli import gin_setup
from jaxalign.cli.commands import COMMANDS, read_signature
from jaxalign.cli.flags import parse_flags
from jaxalign.cli.main import main
from jaxalign.networks.policy import Policy

CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
FAMILIES = ("models", "tasks", "objectives", "optimizers", "runs")

# Numbers of parameters: T5 1.1 and 1.0 as in the public checkpoints; mT5 and ByT5 as their papers round them. T5Gemma as in the
# public checkpoints, where the hub counts them (all but L-L and 2B-2B). umT5: counted from its sizes. T5Gemma 2: as transformers 5.24
# counts a model of these sizes, without its vision tower.
PARAMETERS = {
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "t5_1_0_small": 60_506_624,
    "t5_1_0_base": 222_903_552,
    "t5_1_0_large": 737_668_096,
    "t5_1_0_3b": 2_851_598_336,
    "t5_1_0_11b": 11_307_321_344,
    "umt5_small": 306_601_984,
    "umt5_base": 592_043_520,
    "umt5_xl": 3_768_356_864,
    "umt5_xxl": 12_972_531_712,
    "t5gemma_s_s": 312_517_632,
    "t5gemma_b_b": 591_490_560,
    "t5gemma_l_l": 1_241_761_792,
    "t5gemma_ml_ml": 2_200_345_344,
    "t5gemma_xl_xl": 3_766_980_608,
    "t5gemma_2b_2b": 5_596_853_760,
    "t5gemma_9b_2b": 12_292_375_296,
    "t5gemma_9b_9b": 20_333_401_088,
    "t5gemma2_270m_270m": 368_424_832,
    "t5gemma2_1b_1b": 1_697_783_168,
    "t5gemma2_4b_4b": 7_089_112_576,
}
ROUNDED_MILLIONS = {
    "mt5_small": 300, "mt5_base": 580, "mt5_large": 1230, "mt5_xl": 3740, "mt5_xxl": 12900,
    "byt5_small": 300, "byt5_base": 582, "byt5_large": 1230, "byt5_xl": 3740, "byt5_xxl": 12900,
}  # fmt: skip

# One file of each family, and the values that they require: together a complete configuration.
COMPLETE = {
    "models": "models/tiny.gin",
    "tasks": "tasks/synthetic.gin",
    "objectives": "objectives/dro_v.gin",
    "optimizers": "optimizers/adafactor.gin",
    "runs": "runs/train.gin",
}
OPEN = {
    "MODEL_DIR": "'runs/x'",
    "TRAIN_STEPS": "10",
    "INITIAL_CHECKPOINT_PATH": "'runs/start'",
    "TRAIN_FILE": "'train.jsonl'",
    "VOCABULARY": "'bytes'",
    "VALUE_TOKEN": "100",
}


def names(family: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / family).glob("*.gin"))


def required_macros(file: Path) -> set[str]:
    """Returns the macros that are REQUIRED in a file and its includes."""
    text = file.read_text()
    found: set[str] = set()
    for include in re.findall(r"^include '(.+)'", text, re.MULTILINE):
        found |= required_macros(CONFIGS / include)
    for name, value in re.findall(r"^(\w+) = (.+)$", text, re.MULTILINE):
        if value.startswith("%gin.REQUIRED"):
            found.add(name)
        else:
            found.discard(name)
    return found


def dry_run(files: list[str]) -> int:
    opened = sorted(set().union(*(required_macros(CONFIGS / file) for file in files)))
    bindings = [f"--gin.{name}={OPEN[name]}" for name in opened]
    return main(["train", *(f"--gin_file={file}" for file in files), *bindings, "--dry_run"])


@functools.cache
def parameter_count(policy: Policy) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(policy.abstract_params()))


def configured_policy(model: str) -> Policy:
    """Returns the policy that a model file describes."""
    gin.clear_config()
    command = COMMANDS["train"]
    signature = read_signature(command)
    files = [
        f"--gin_file={file}" for file in (COMPLETE | {"models": f"models/{model}.gin"}).values()
    ]
    settings = ["--gin.MODEL_DIR='runs/x'", "--gin.TRAIN_STEPS=10"]
    function = gin_setup.configure(parse_flags([*files, *settings], signature), command, signature)
    return gin.get_bindings(function)["objective"].policy


@pytest.fixture(autouse=True)
def _fresh_gin():
    yield
    gin.clear_config()


@pytest.fixture(autouse=True)
def _files_that_a_dry_run_requires(tmp_path, monkeypatch):
    """Creates the files of `OPEN` and of the tasks, which are relative paths."""
    folder = tmp_path / "work"
    start = folder / "runs" / "start"
    (start / "checkpoints" / "1").mkdir(parents=True)
    (start / "networks.json").write_text('{"networks": {}}')
    (folder / "train.jsonl").touch()
    for name in names("tasks"):
        text = (CONFIGS / "tasks" / f"{name}.gin").read_text()
        for path in re.findall(r"_FILE = '(.+)'", text):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    "model", [name for name in names("models") if name not in ("t5", "t5gemma", "t5gemma2")]
)
def test_a_model_file_builds_its_network_abstractly(model):
    policy = configured_policy(model)
    count = parameter_count(policy)
    family = re.sub(r"^(flan_t5|t5_lm_adapted)_", "t5_1_1_", model)
    if family in PARAMETERS:
        assert count == PARAMETERS[family]
        said = re.search(
            r"^# ([\d,]+) parameters", (CONFIGS / f"models/{model}.gin").read_text(), re.M
        )
        assert said is None or int(said[1].replace(",", "")) == count
    elif model in ROUNDED_MILLIONS:
        assert count == pytest.approx(ROUNDED_MILLIONS[model] * 1e6, rel=0.02)
    elif model == "mini":
        assert count == pytest.approx(1.05e6, rel=0.01)
    assert policy.config.vocab_size % 128 == 0


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FAMILIES[1:] for name in names(family)],
)
def test_a_file_completes_a_configuration(family, name, capsys):
    files = COMPLETE | {family: f"{family}/{name}.gin"}
    assert dry_run(list(files.values())) == 0, capsys.readouterr().err
    assert dry_run(list(reversed(files.values()))) == 0, "files of a configuration go in any order"


@pytest.mark.parametrize("name", names("experiments"))
def test_an_experiment_is_complete_and_has_its_command(name, capsys):
    file = CONFIGS / "experiments" / f"{name}.gin"
    assert dry_run([f"experiments/{name}.gin"]) == 0, capsys.readouterr().err
    header = file.read_text().split("\n\n")[0]
    for field in ("Command:", "Hardware:", "Expect:", f"--gin_file=experiments/{name}.gin"):
        assert field in header
    for macro in required_macros(file):
        assert f"--{macro}=" in header, f"the command in {name}.gin lacks the required {macro}"


def test_no_two_families_set_the_same_macro():
    owners: dict[str, str] = {}
    for family in FAMILIES:
        for name in names(family):
            text = (CONFIGS / family / f"{name}.gin").read_text()
            for macro in re.findall(r"^([A-Z_]+) = ", text, re.MULTILINE):
                # The single-network value sets the token that the model removes from its softmax. Rows for pairs replace those of an
                # experiment, which may be too short for two responses.
                if (macro, name) not in (
                    ("VALUE_TOKEN", "dro_v_single_network"),
                    ("ROW_LENGTHS", "jsonl_pairs"),
                ):
                    assert owners.setdefault(macro, family) == family, macro


def test_every_hyperparameter_of_an_objective_or_optimizer_has_a_comment():
    for family in ("objectives", "optimizers"):
        for name in names(family):
            for line in (CONFIGS / family / f"{name}.gin").read_text().splitlines():
                value = re.match(r"\s*\w+ = ([-\d'TFN].*)", line)
                own = value and not re.search(r"REFERENCE = 'cached'|schedule|SCHEDULE", line)
                included = "include '" in (CONFIGS / family / f"{name}.gin").read_text()
                assert not own or included or "#" in line, f"{family}/{name}.gin: {line}"


def test_files_use_dynamic_registration_and_only_our_modules():
    for path in CONFIGS.rglob("*.gin"):
        text = path.read_text()
        imports = re.findall(r"^(?:from|import) .*$", text, re.MULTILINE)
        if imports:
            assert imports[0] == "from __gin__ import dynamic_registration", path
        assert all(line.startswith("from jaxalign") for line in imports[1:]), path
        assert not re.search(r"^import ", text, re.MULTILINE), path


def test_a_wrong_size_is_refused_before_anything_compiles(capsys):
    files = [f"--gin_file={file}" for file in COMPLETE.values()]
    settings = ["--gin.MODEL_DIR='runs/x'", "--gin.TRAIN_STEPS=10"]
    assert main(["train", *files, *settings, "--gin.ACTIVATION_DTYPE='float16'", "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxalign: T5Config.dtype")
    assert "float16" in error
    assert error.count("\n") == 1


def _macros_that_must_be_positive():
    for name in names("objectives"):
        text = (CONFIGS / "objectives" / f"{name}.gin").read_text()
        for macro in re.findall(r"^(BETA|TEMPERATURE|TAU|ETA) = ", text, re.MULTILINE):
            yield name, macro


@pytest.mark.parametrize(("name", "macro"), list(_macros_that_must_be_positive()))
def test_an_invalid_strength_is_refused_by_a_dry_run(name, macro, capsys):
    files = COMPLETE | {"objectives": f"objectives/{name}.gin"}
    arguments = ["train", *(f"--gin_file={file}" for file in files.values()), "--dry_run"]
    arguments += ["--gin.MODEL_DIR='runs/x'", "--gin.TRAIN_STEPS=1"]
    opened = required_macros(CONFIGS / files["objectives"]) & set(OPEN)
    arguments += [f"--gin.{macro}={OPEN[macro]}" for macro in opened]
    for value in ("-1.0", "'big'"):
        assert main([*arguments, f"--gin.{macro}={value}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and value.strip("'").removesuffix(".0") in error


@pytest.mark.parametrize(
    ("macro", "value", "message"),
    [
        ("LEARNING_RATE", "'big'", "but adafactor.learning_rate takes a number"),
        ("STORED_FIELDS", "{'advantages': 3}", "takes Mapping[str, str]"),
        ("INITIAL_CHECKPOINT_PATH", "'runs/nowhere'", "runs/nowhere does not exist"),
    ],
)
def test_a_dry_run_reports_a_wrong_value_in_one_line(macro, value, message, capsys):
    files = [f"--gin_file={file}" for file in COMPLETE.values()]
    settings = ["--gin.MODEL_DIR='runs/x'", "--gin.TRAIN_STEPS=10", f"--gin.{macro}={value}"]
    assert main(["train", *files, *settings, "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_dry_run_reports_a_missing_training_file(capsys):
    files = COMPLETE | {"tasks": "tasks/jsonl_pairs.gin", "objectives": "objectives/dpo.gin"}
    arguments = ["train", *(f"--gin_file={file}" for file in files.values()), "--dry_run"]
    arguments += ["--gin.MODEL_DIR='runs/x'", "--gin.TRAIN_STEPS=1"]
    assert main([*arguments, "--gin.TRAIN_FILE='nowhere.jsonl'"]) == 2
    assert "TRAIN_FILE nowhere.jsonl does not exist" in capsys.readouterr().err


def test_a_missing_family_is_named(capsys):
    arguments = ["train", "--gin_file=runs/train.gin", "--gin.MODEL_DIR='x'", "--gin.TRAIN_STEPS=1"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    for folder in ("tasks", "objectives", "optimizers"):
        assert f"add a --gin_file of {folder}/" in error
    assert main([*arguments, "--gin_file=objectives/sft.gin"]) == 2
    assert "add a --gin_file of models/" in capsys.readouterr().err


def test_tasks_are_registered_before_the_command_runs(tmp_path, capsys):
    files = [
        f"--gin_file={file}" for file in (COMPLETE | {"tasks": "tasks/ultrafeedback.gin"}).values()
    ]
    settings = [
        f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.TRAIN_STEPS=1", "--gin.VOCABULARY='bytes'",
        "--gin.TRAIN_FILE='any.jsonl'", "--gin.REWARD_FIELD='beauty'",
    ]  # fmt: skip
    assert main(["train", *files, *settings]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("jaxalign: register_ultrafeedback_task: Unknown reward_field 'beauty'")
    assert not (tmp_path / "run").exists()
