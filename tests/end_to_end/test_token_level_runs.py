"""Runs whose networks are not copies of one policy: a teacher of another size, and a value of every prefix that is loaded again."""

import jax
import numpy as np
import pytest

from jaxalign.annotation.score import score
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.inference.rows import predict_values
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.token_value import TokenValueNetwork
from jaxalign.objectives.distillation import Distillation
from jaxalign.objectives.oreo import OREO
from jaxalign.objectives.sft import SFT
from jaxalign.runs.checkpoints import restore_params
from jaxalign.runs.folder import Run
from jaxalign.runs.metrics import read_metrics
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train

pytestmark = pytest.mark.slow

STUDENT = T5Config(
    vocab_size=272,
    emb_dim=8,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)
TEACHER = STUDENT.replace(emb_dim=16)


@pytest.fixture(scope="module")
def run(feedback, tmp_path_factory):
    """`run(name, objective, steps)` trains in a folder and returns it."""
    folder = tmp_path_factory.mktemp("runs")

    def start(name, objective, steps=2, *, stored=(), **options):
        train(
            model_dir=str(folder / name),
            objective=objective,
            data=TaskData(
                task="tiny",
                cache_dir=str(folder / "cache"),
                feature_lengths={"inputs": 16, "targets": 16},
                train_file=str(feedback),
                stored=dict(stored),
            ),
            optimizers={"policy": adamw(1e-3)},
            loop=LoopConfig(train_steps=steps, log_period=1, eval_period=0, progress=False),
            batch_size=8,
            **options,
        )
        return folder / name

    return start


def test_a_teacher_of_another_size_is_read_from_its_run(run):
    teacher = run("teacher", SFT(policy=Policy(TEACHER)))
    objective = Distillation(
        policy=Policy(STUDENT), teacher=Policy(TEACHER), teacher_path=str(teacher)
    )
    folder = run("student", objective, steps=6)
    losses = [
        line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "train"
    ]
    assert len(losses) == 6 and losses[-1] < losses[0]
    # Frozen roles are not checkpointed, and another run's network is checked before anything compiles.
    with pytest.raises(UserError, match="no role 'teacher'"):
        restore_params(folder, "teacher")
    wrong = Distillation(policy=Policy(STUDENT), teacher_path=str(teacher))
    with pytest.raises(UserError, match="shape"):
        run("wrong", wrong)


def test_stored_tokens_of_a_teacher_teach_what_it_would(run):
    teacher = run("wise", SFT(policy=Policy(TEACHER)))
    count = TEACHER.vocab_size - 1
    cache_dir = str(teacher.parent / "cache")
    score(checkpoint=str(teacher), cache_dir=cache_dir, name="all", top_tokens=count)
    live = Distillation(policy=Policy(STUDENT), teacher=Policy(TEACHER), teacher_path=str(teacher))
    stored = Distillation(policy=Policy(STUDENT), source="stored")
    folders = [
        run("live", live, steps=6),
        run("stored", stored, steps=6, stored={"teacher_top": "all"}),
    ]
    one, other = ([line["loss"] for line in read_metrics(f / "metrics.jsonl")] for f in folders)
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_value_of_prefixes_is_loaded_as_what_it_is(run):
    objective = OREO(policy=Policy(STUDENT), value=TokenValueNetwork(STUDENT))
    folder = run("oreo", objective)
    value = Run(folder).value()
    assert value.network == objective.value
    trained = restore_params(folder, "value")
    jax.tree.map(np.testing.assert_array_equal, value.params, trained)
    values = predict_values(value.network, value.params, [[5, 6, 1], [7, 1]])
    assert values.shape == (2,) and values[0] != values[1]
