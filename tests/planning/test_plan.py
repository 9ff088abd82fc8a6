"""`jaxalign plan` from gin files to its JSON, with eight simulated devices in place of a slice."""

import importlib.util
import json

import jax
import pytest

from jaxalign.cli.main import main
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.distillation import Distillation
from jaxalign.parallel.accelerators import ACCELERATORS
from jaxalign.planning import plan as plan_module
from jaxalign.planning import plan_report, topologies
from jaxalign.planning.compile_spec import batch_shapes

FILES = (
    "--gin_file=models/tiny.gin",
    "--gin_file=tasks/ultrafeedback.gin",
    "--gin_file=objectives/dro_v.gin",
    "--gin_file=optimizers/adafactor.gin",
    "--gin_file=runs/finetune.gin",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 16}",
    "--gin.BATCH_SIZE=8",
    "--gin.PACK=False",
    "--gin.DROPOUT_RATE=0.0",
)
TINY = {
    "vocab_size": 32,
    "emb_dim": 8,
    "num_heads": 2,
    "head_dim": 4,
    "mlp_dim": 8,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
PAPER = "--gin_file=experiments/dro_paper/t5_large_dro_v.gin"


@pytest.fixture
def slice_of_cpus(monkeypatch):
    """Eight simulated devices as a v5e slice."""
    monkeypatch.setattr(
        topologies, "describe", lambda name: (ACCELERATORS["v5e"], list(jax.devices()[:8]))
    )


def test_without_libtpu_the_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r'pip install "jaxalign\[tpu\]"'):
        topologies.describe("v5e:4x4")


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "h100:2x2", "v9z:2x2", "v5e:0x4", "v5e:4x4*0"])
def test_a_malformed_topology_name_is_refused(name):
    with pytest.raises(UserError, match="topology"):
        topologies.parse_topology(name)


def test_topology_names_give_generation_extent_and_slices():
    assert topologies.parse_topology("v5p:2x2x4*2") == (ACCELERATORS["v5p"], (2, 2, 4), 2)


def test_values_that_a_plan_does_not_need_are_not_required(capsys):
    assert main(["plan", PAPER, "--topology=v5e:4x4", "--dry_run"]) == 0
    assert "plan.plan.objective" in capsys.readouterr().out


def test_bindings_of_the_run_may_stay_on_the_command_line(capsys):
    run = ("--gin.MODEL_DIR='runs/x'", "--gin.TRAIN_FILE='x.jsonl'", "--gin.EVAL_PERIOD=7")
    assert main(["plan", PAPER, *run, "--topology=v5e:4x4", "--dry_run"]) == 0


def test_a_misspelt_binding_is_still_refused(capsys):
    assert main(["plan", PAPER, "--gin.BATCH_SIZ=3", "--topology=v5e:4x4", "--dry_run"]) == 2
    assert "did you mean BATCH_SIZE" in capsys.readouterr().err


def test_train_requires_the_values_that_it_needs(capsys):
    assert main(["train", PAPER, "--dry_run"]) == 2
    assert "MODEL_DIR" in capsys.readouterr().err


def test_tokens_of_a_stored_teacher_are_part_of_the_batch():
    policy = Policy(T5Config(**TINY))
    data = TaskData(
        task="any",
        cache_dir="nowhere",
        feature_lengths={"inputs": 16, "targets": 24},
        stored={"teacher_top": "x"},
    )
    stored = Distillation(policy=policy, source="stored")
    shapes = batch_shapes(stored, data, 8, teacher_top=5)
    for field, dtype in (("teacher_top_ids", "int32"), ("teacher_top_log_probs", "float32")):
        assert shapes[field].shape == (8, 24, 5) and shapes[field].dtype == dtype
    assert "teacher_top" not in shapes
    assert "teacher_top_ids" not in batch_shapes(Distillation(policy=policy), data, 8)


def test_the_json_of_a_plan_has_its_schema(slice_of_cpus, tmp_path, capsys):
    output = tmp_path / "folder" / "tiny"
    flags = ("--topology=v5e:2x4", f"--output={output}", "--title=Tiny")
    assert main(["plan", *FILES, *flags]) == 0
    plan = json.loads(output.with_suffix(".json").read_text())
    assert list(plan) == [
        "schema",
        "run",
        "topology",
        "mesh",
        "fits",
        "reason",
        "memory",
        "flops",
        "collectives",
        "roofline",
        "compile",
        "change",
        "with_change",
        "trials",
        "title",
    ]
    assert plan["topology"]["name"] == "v5e:2x4" and plan["topology"]["accelerator"] == "v5e"
    assert plan["schema"] == 1 and plan["fits"] and plan["change"] is None
    assert plan["run"]["objective"] == "dro_v" and plan["run"]["batch_size"] == 8
    memory = plan["memory"]
    parts = ("parameters", "optimizer", "batch", "program", "activations")
    assert memory["peak"] == sum(memory[part] for part in parts)
    flops = plan["flops"]
    assert flops["step"] == 8 * flops["per_chip"]
    assert flops["step"] >= flops["model_step"] > sum(flops["forward_parts"].values())
    assert plan["collectives"]["unknown_loops"] == []
    assert plan["collectives"]["kinds"]["all-reduce"]["count"] > 0
    bound = plan["roofline"]
    assert bound["lower_seconds"] <= bound["upper_seconds"]
    assert bound["mfu_lower"] <= bound["mfu_upper"] <= 1
    printed = capsys.readouterr().out
    assert output.with_suffix(".md").read_text().strip() in printed
    assert printed.startswith("# Tiny\n\n**Fits:**")
    assert plan_report.table(plan).startswith("# Tiny")


def test_auto_continues_after_a_topology_that_does_not_fit(monkeypatch, slice_of_cpus, capsys):
    def found(spec, name, accelerator, devices, search_change):
        assert not search_change
        if name == "v5e:4x4":
            raise UserError("batch size 8 is not a multiple of 16 devices")
        fits = name != "v5e:2x4"
        return {
            "fits": fits,
            "reason": None if fits else "the peak exceeds the chip's memory",
            "memory": {"peak": 2**30, "chip": 2**34},
            "roofline": {"lower_seconds": 0.5} if fits else None,
            "compile": {"seconds": 1.0},
        }

    monkeypatch.setattr(plan_module, "plan_topology", found)
    monkeypatch.setattr(topologies, "require_libtpu", lambda: None)
    assert main(["plan", *FILES, "--topology=auto"]) == 0
    printed = capsys.readouterr().out
    assert "| v5e:2x4 | no | 1.00 GiB of 16.00 GiB | the peak exceeds" in printed
    assert "| v5e:4x4 | no |  | batch size 8 is not a multiple" in printed
    assert "| v4:2x2x4 | yes | 1.00 GiB of 16.00 GiB | 500.0 ms | 1 s |" in printed


@pytest.mark.slow
def test_a_real_compilation_for_a_tpu_slice(tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which compiles for a TPU on any machine: pip install libtpu")
    output = tmp_path / "tiny"
    assert main(["plan", *FILES, "--topology=v5e:2x4", f"--output={output}"]) == 0
    plan = json.loads(output.with_suffix(".json").read_text())
    assert plan["fits"] and plan["topology"]["chips"] == 8
    assert plan["memory"]["peak"] < plan["memory"]["chip"]
    assert plan["collectives"]["unknown_loops"] == []
