"""Distillation from stored tokens is distillation from the teacher itself, if the tokens are all but one of the vocabulary."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.annotation import score
from jaxalign.annotation.cache_pass import PassSettings
from jaxalign.annotation.teacher import store_top_tokens
from jaxalign.data import cache
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.losses.distillation import forward_kl, reverse_kl
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.distillation import Distillation
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.training import launch, task_checks

LENGTHS = {"inputs": 24, "targets": 16}
POLICY = Policy(
    T5Config(
        vocab_size=264,
        emb_dim=8,
        num_heads=2,
        head_dim=4,
        mlp_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
)
COUNT = POLICY.config.vocab_size - 1


@pytest.fixture(scope="module")
def params():
    init = jax.jit(POLICY.init)
    return {"policy": init(jax.random.key(0)), "teacher": init(jax.random.key(1))}


@pytest.fixture(scope="module")
def data(params, tmp_path_factory):
    """Triplets with the teacher's tokens, computed in packed rows on eight devices."""
    root = tmp_path_factory.mktemp("data")
    file, folder = root / "feedback.jsonl", str(root / "cache")
    rows = [{"prompt": f"say {i}", "response": "x" * (1 + i % 9), "feedback": i} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache.cache("tiny", folder, train_file=str(file))
    store_top_tokens(
        POLICY,
        params["teacher"],
        TaskCache(folder),
        "teacher",
        PassSettings(
            splits=["train"],
            feature_lengths=LENGTHS,
            batch_size=8,
            mesh=partitioning.make_mesh(MeshShape(data=2, fsdp=2, tensor=2)),
            info={"run": "x"},
        ),
        count=COUNT,
    )
    return TaskData(
        task="tiny",
        cache_dir=folder,
        feature_lengths=LENGTHS,
        stored={"teacher_top": "teacher"},
        eval_split="",
    )


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_all_tokens_but_one_give_loss_and_gradient_of_the_teacher_itself(data, params, divergence):
    live = Distillation(policy=POLICY, divergence=divergence)
    stored = dataclasses.replace(live, source="stored")
    batch = next(iter(data.training_dataset(8, 0, None)))
    stored.check_batch(batch)

    def loss(objective):
        def total(policy):
            output = objective.loss({**params, "policy": policy}, batch, None)
            return output.loss_sum / output.weight

        return jax.jit(jax.value_and_grad(total))(params["policy"])

    (one, gradient), (other, expected) = loss(stored), loss(live)
    assert one > 0.01
    np.testing.assert_allclose(one, other, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), gradient, expected
    )


def test_a_run_finds_out_before_it_compiles(data, params):
    objective = Distillation(policy=POLICY, source="stored")
    metadata = data.prepare()
    task_checks.check(objective, data, metadata, quiet=True)
    with pytest.raises(UserError, match=r"jaxalign score --top_tokens=K.*'teacher_top': NAME"):
        task_checks.check(objective, dataclasses.replace(data, stored={}), metadata, quiet=True)
    with pytest.raises(UserError, match="no teacher tokens 'teacher' for the split 'validation'"):
        dataclasses.replace(data, eval_split="validation").prepare()
    tokens = TaskCache(data.cache_dir).teacher_tokens("train", "teacher")
    assert tokens.info == {"run": "x", "top_tokens": COUNT, "vocab_size": COUNT + 1}
    smaller = dataclasses.replace(objective, policy=Policy(POLICY.config.replace(vocab_size=260)))
    with pytest.raises(UserError, match=r"a policy with 264 tokens.* distillation has 260"):
        task_checks.check(smaller, data, metadata, quiet=True)
    who = data.teacher()
    assert who == {"name": "teacher", **tokens.info}
    launch.check_same_teacher(Path("run"), who, who)
    with pytest.raises(UserError, match=r"began with the teacher tokens .*'run': 'x'"):
        launch.check_same_teacher(Path("run"), who, who | {"run": "y"})
    settings = PassSettings(
        feature_lengths=LENGTHS, batch_size=8, mesh=partitioning.make_mesh(), info={}
    )
    for count in (0, COUNT + 2):
        with pytest.raises(UserError, match=f"between 1 and the vocabulary's {COUNT + 1}"):
            store_top_tokens(
                POLICY, params["teacher"], data.cache(), "other", settings, count=count
            )


def test_a_policy_of_another_vocabulary_scores_nothing(data, tmp_path):
    run = tmp_path / "other"
    (run / "checkpoints" / "1").mkdir(parents=True)
    description = {"networks": {}, "vocabulary": {"kind": "bytes", "extra_ids": 7}}
    (run / "networks.json").write_text(json.dumps(description))
    for top_tokens in (0, 4):
        with pytest.raises(UserError, match=r"another vocabulary than the run .*other"):
            score.score(
                checkpoint=str(run),
                cache_dir=data.cache_dir,
                top_tokens=top_tokens,
                max_input_length=8,
                max_target_length=8,
            )
