"""`gin_configs/experiments/dro_paper`: every file has the paper's settings, and trains two steps with a small model."""

import contextlib
import json
import random
import re
from pathlib import Path

import gin
import jax
import numpy as np
import pytest

from jaxalign.cli import gin_setup
from jaxalign.cli.commands import COMMANDS, read_signature
from jaxalign.cli.flags import parse_flags
from jaxalign.cli.main import main
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.ultrafeedback import ASPECTS
from jaxalign.parallel import partitioning
from jaxalign.planning.compile_spec import CompileSpec, batch_shapes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "gin_configs" / "experiments" / "dro_paper"
NAMES = sorted(path.stem for path in FOLDER.glob("*.gin"))

# (file to compare with, changed macros): arXiv 2405.19107, section 5 and figure 5.
LARGE, XL, KTO = "t5_large_dro_v", "t5_xl_dro_v", "t5_large_kto"
TEN = {"TRAIN_STEPS": "10000"}
SINGLE = {"VALUES_PER_BATCH": "'single'"}
SENTINEL = {"VALUE": "@value_variants.SentinelValue()", "VALUE_TOKEN": "32127"}
SHARED = {"VALUE": "@value.SharedTrunkValue()"}
KTO_CHANGES = {"OBJECTIVE": "@kto.KTO()", "BETA": "5.0"}
XL_CHECKPOINT = "'gs://t5-data/pretrained_models/t5x/flan_t5_xl/checkpoint_1138000'"
CHANGES: dict[str, tuple[str, dict[str, str]]] = {
    XL: (LARGE, {"TRAIN_STEPS": "20000", "INITIAL_CHECKPOINT_PATH": XL_CHECKPOINT}),
    "t5_large_dro_p": (LARGE, {"OBJECTIVE": "@dro.DROP()"}),
    "t5_xl_dro_p": (XL, {"OBJECTIVE": "@dro.DROP()"}),
    KTO: (LARGE, KTO_CHANGES),
    "t5_xl_kto": (XL, KTO_CHANGES),
    **{f"learning_rate_{x}": (LARGE, {"LEARNING_RATE": x}) for x in ("1e-5", "5e-5", "5e-4")},
    **{
        f"value_learning_rate_{x}": (LARGE, {"VALUE_LEARNING_RATE": x})
        for x in ("1e-5", "5e-5", "5e-4")
    },
    **{f"tau_{x}": (LARGE, {"TEMPERATURE": x}) for x in ("0.1", "5.0")},
    **{f"kto_tau_{x}": (KTO, {"BETA": x}) for x in ("0.1", "1.0")},
    "double_network_multiple_values": (LARGE, TEN),
    "double_network_single_value": (LARGE, TEN | SINGLE),
    "double_network_single_value_learned": (
        LARGE,
        TEN | {"VALUE": "@value_variants.ScalarValue()"},
    ),
    "single_network_multiple_values": (LARGE, TEN | SENTINEL),
    "single_network_single_value": (LARGE, TEN | SENTINEL | SINGLE),
    "shared_encoder_multiple_values": (LARGE, TEN | SHARED),
    "shared_encoder_single_value": (LARGE, TEN | SHARED | SINGLE),
}

SMALL_MODEL = {
    "VOCAB_SIZE": 384,
    "T5Config.emb_dim": 16,
    "T5Config.num_heads": 2,
    "T5Config.head_dim": 8,
    "T5Config.mlp_dim": 16,
    "T5Config.num_encoder_layers": 2,
    "T5Config.num_decoder_layers": 2,
}
# Settings that make compilation long are tested in the slow runs.
QUICK = {
    "SCAN_LAYERS": False,
    "REMAT_POLICY": repr("none"),
    "ACTIVATION_DTYPE": repr("float32"),
    "T5Config.num_encoder_layers": 1,
    "T5Config.num_decoder_layers": 1,
}
OPEN = ["--gin.MODEL_DIR='run'", "--gin.TRAIN_FILE='x.jsonl'", "--gin.VOCABULARY='bytes'"]


@pytest.fixture(autouse=True)
def _fresh_gin():
    yield
    gin.clear_config()


def configured(name, *settings):
    """Returns the arguments of `train` that a file describes, not built yet, and its macros as text."""
    gin.clear_config()
    command = COMMANDS["train"]
    signature = read_signature(command)
    arguments = [f"--gin_file=experiments/dro_paper/{name}.gin", *OPEN, *settings]
    function = gin_setup.configure(parse_flags(arguments, signature), command, signature)
    macros = {
        scope: repr(bound["value"]).replace("@jaxalign.objectives.", "@")
        for (scope, selector), bound in gin.config._CONFIG.items()
        if selector == "gin.macro"
    }
    return function, macros


def same(given: str, found: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(given) == float(found)
    return found.endswith(given.lstrip("@")) or found == given


@pytest.mark.parametrize("name", sorted(set(NAMES) - {LARGE}))
def test_a_file_changes_only_the_settings_in_its_name(name):
    base, expected = CHANGES[name]
    _, before = configured(base)
    _, after = configured(name)
    changed = {key: after[key] for key in after if after[key] != before.get(key)}
    # A macro with an unchanged value is no change. Macros of an objective that was replaced are not read.
    assert changed.keys() == {k for k, v in expected.items() if not same(v, before.get(k, ""))}
    for key, value in changed.items():
        assert same(expected[key], value), (key, value)


def test_the_folder_holds_every_experiment_and_no_other():
    assert set(NAMES) == {LARGE, *CHANGES}


def test_policy_and_value_have_the_papers_optimizer_each_with_its_learning_rate():
    for name, policy_rate, value_rate in (
        (LARGE, 1e-4, 1e-4),
        ("learning_rate_5e-5", 5e-5, 5e-5),
        ("value_learning_rate_5e-4", 1e-4, 5e-4),
    ):
        function, _ = configured(name)
        bound = gin.get_bindings(function)
        for role, rate in (("policy", policy_rate), ("value", value_rate)):
            schedule = bound["optimizers"][role].schedule
            assert float(schedule(0)) == pytest.approx(rate / 150), (name, role)
            assert float(schedule(149)) == float(schedule(39_999)) == pytest.approx(rate)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_a_complete_command_a_plan_and_the_papers_result(name):
    header = (FOLDER / f"{name}.gin").read_text().split("\n\n")[0]
    topology = "v5e:4x8" if name.startswith("t5_xl") else "v5e:4x4"
    file = f"--gin_file=experiments/dro_paper/{name}.gin"
    assert f"jaxalign train {file} " in header
    assert f"jaxalign plan {file} " in header and f"--topology={topology}" in header
    for field in ("Hardware:", "Time:", "Expect:", "2405.19107"):
        assert field in header
    assert re.search(r"Expect: .*(win rate against SFT.* \d\d\.\d|not stated)", header)
    assert all(
        f"{binding.partition('=')[0].replace('--gin.', '--')}=" in header for binding in OPEN
    )
    assert main(["train", file, *OPEN, "--dry_run"]) == 0


def test_the_documentation_names_every_file(repository):
    page = (repository / "docs" / "reproduction.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []


# These files have no plan in docs/results/plans, because they compile to the program of the file that they are compared with.
ONLY_NUMBERS = sorted(
    {"double_network_multiple_values"}
    | {name for name in NAMES if name.startswith(("learning_rate", "value_learning", "tau", "kto"))}
)


def program(name):
    """Traces the step of a file with a small model, and replaces floating-point literals."""
    lengths = {"TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 32}}
    changes = [f"--gin.{key}={value}" for key, value in (SMALL_MODEL | QUICK | lengths).items()]
    function, _ = configured(name, *changes)
    bound = gin.get_bindings(function)
    spec = CompileSpec(
        objective=bound["objective"],
        optimizers=bound["optimizers"],
        mesh=bound["devices"].mesh,
        batch=batch_shapes(bound["objective"], bound["data"], 32),
        microbatches=1,
        rules=partitioning.check_axis_rules({}, bound["objective"].trained()),
    )
    mesh = partitioning.make_mesh(spec.mesh, jax.devices())
    built, frozen, _ = spec.build(mesh)
    with partitioning.set_mesh(mesh):
        text = str(jax.make_jaxpr(built.function)(built.abstract, frozen, dict(spec.batch)))
    text = re.sub(r"0x[0-9a-f]+", "", text)
    return re.sub(r"-?\b\d+(\.\d*)?(e[-+]?\d+)?:f32", "NUMBER", text)


@pytest.fixture(scope="module")
def programs():
    return {name: program(name) for name in (LARGE, KTO)}


@pytest.mark.parametrize("name", ONLY_NUMBERS)
def test_a_file_that_changes_numbers_has_the_program_of_its_base(name, programs):
    assert program(name) == programs[CHANGES[name][0]]


def test_another_method_or_value_is_another_program(programs):
    assert programs[KTO] != programs[LARGE] != program("double_network_single_value")


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ONLY_NUMBERS)))
def test_a_file_with_its_own_program_has_a_plan_that_fits(name):
    plan = json.loads((ROOT / "docs" / "results" / "plans" / f"{name}.json").read_text())
    assert plan["fits"] and plan["change"] is None
    assert plan["memory"]["peak"] <= plan["memory"]["chip"]


@pytest.fixture(scope="module")
def ultrafeedback(tmp_path_factory):
    """Forty instructions with four rated completions each, in the release's layout."""
    numbers = random.Random(0)
    path = tmp_path_factory.mktemp("ultrafeedback") / "ultrafeedback.jsonl"
    with path.open("w") as file:
        for i in range(40):
            completions = []
            for k in range(4):
                ratings = {a: {"Rating": str(numbers.randint(1, 5))} for a in ASPECTS}
                completions.append(
                    {"response": f"{i} {'yes ' * numbers.randint(1, 5)}{k}", "annotations": ratings}
                )
            source = "truthful_qa" if i == 7 else "evol_instruct"
            row = {"instruction": f"is {i} odd?", "source": source, "completions": completions}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_file_trains_two_steps_with_a_small_model(name, ultrafeedback, tmp_path, capsys):
    train_two_steps(name, {}, ultrafeedback, tmp_path, capsys)


def test_the_main_file_trains_two_steps_with_a_tiny_model(ultrafeedback, tmp_path, capsys):
    train_two_steps(LARGE, QUICK, ultrafeedback, tmp_path, capsys)


def train_two_steps(name, changes, ultrafeedback, tmp_path, capsys):
    settings = {
        "MODEL_DIR": repr(str(tmp_path / "run")),
        "CACHE_DIR": repr(str(ultrafeedback.parent / "cache")),
        "TRAIN_FILE": repr(str(ultrafeedback)),
        "VOCABULARY": repr("bytes"),
        "EXTRA_IDS": 0,
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 32},
        "INITIAL_CHECKPOINT_PATH": None,
        "TRAIN_STEPS": 2,
        **({"VALUE_TOKEN": 300} if name.startswith("single_network") else {}),
        **SMALL_MODEL,
        **changes,
    }
    command = ["train", f"--gin_file=experiments/dro_paper/{name}.gin"]
    command += [f"--gin.{key}={value}" for key, value in settings.items()]
    try:
        assert main(command) == 0, capsys.readouterr().err
    finally:
        unregister("ultrafeedback")
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 2
    assert np.isfinite(summary["train"]["loss"])
    assert np.isfinite(summary["evaluation"]["validation/loss"])
    assert json.loads((run / "versions.json").read_text())["devices"].startswith("8 x")
    text = (run / "config.gin").read_text()
    assert {"MESH_DATA = 1", "MESH_FSDP = -1", "BATCH_SIZE = 32"} <= set(text.splitlines())
    # All prompts except that of the benchmark, with four responses each.
    cached = TaskCache(str(ultrafeedback.parent / "cache")).metadata
    assert sum(cached.num_examples.values()) == 39 * 4


def unregister(task):
    """The next file registers the task anew."""
    import seqio

    if task in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task)
