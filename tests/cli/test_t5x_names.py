"""Names that only T5X's gin files have are refused with what does the same here."""

import pytest

from jaxalign.cli.main import main

TRAIN = [
    "train",
    "--dry_run",
    "--gin_file=models/tiny.gin",
    "--gin_file=tasks/synthetic_seq2seq.gin",
    "--gin_file=objectives/sft.gin",
    "--gin_file=optimizers/adafactor.gin",
    "--gin_file=runs/train.gin",
    "--gin.TRAIN_STEPS=1",
    "--gin.VOCAB_SIZE=384",
]


@pytest.fixture
def told(tmp_path, capsys):
    """`told(*arguments)` gives the one line that a refused command prints."""

    def tell(*arguments):
        assert main([*TRAIN, f"--gin.MODEL_DIR='{tmp_path}/run'", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return tell


def test_parameters_of_t5x_on_the_command_line(told):
    line = told("--gin.utils.SaveCheckpointConfig.period=2000")
    assert line.endswith(
        "utils.SaveCheckpointConfig.period is T5X's; here it is: CHECKPOINT_PERIOD"
    )
    assert "MESH_TENSOR" in told("--gin.partitioning.PjitPartitioner.num_partitions=2")
    assert "LEARNING_RATE" in told(
        "--gin.utils.create_learning_rate_scheduler.base_learning_rate=0.001"
    )


def test_macros_of_t5x(told, tmp_path):
    assert "CACHE_DIR" in told("--gin.USE_CACHED_TASKS=False")
    for name, value in (("USE_CACHED_TASKS", "False"), ("TRAIN_STEPS_RELATIVE", "100")):
        file = tmp_path / f"{name}.gin"
        file.write_text(f"{name} = {value}\n")
        assert f"{name} has no effect: {name} is T5X's" in told(f"--gin_file={file}")


def test_a_gin_file_of_t5x_is_told_apart_from_a_broken_one(told, tmp_path):
    file = tmp_path / "finetune.gin"
    file.write_text(
        "from __gin__ import dynamic_registration\n"
        "from t5x import utils\n"
        "utils.SaveCheckpointConfig:\n"
        "  period = 1000\n"
        "  keep = 3\n"
    )
    line = told(f"--gin_file={file}")
    assert (
        "t5x" in line and "SaveCheckpointConfig.keep is T5X's; here it is: KEEP_CHECKPOINTS" in line
    )
