"""A reward model from its gin file: trained on pairs, loaded, asked as a judge, stored beside a cache, calibrated."""

import json

import gin
import jax
import numpy as np
import pytest

from jaxalign.annotation import judges
from jaxalign.cli.main import main
from jaxalign.data.cache import cache
from jaxalign.data.task_cache import TaskCache
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import RewardNetwork
from jaxalign.runs.checkpoints import restore_params
from jaxalign.runs.folder import Run
from jaxalign.runs.metrics import read_metrics

LENGTHS = {"inputs": 16, "targets": 12}
MODEL = ["--gin_file=models/tiny.gin", "--gin.VOCAB_SIZE=272"]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _fresh_gin():
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pairs in which the response with the b is better, whichever is longer, and a model trained on them."""
    folder = tmp_path_factory.mktemp("reward")
    pairs = [
        {"prompt": f"say {i}", "chosen": "b" * (1 + i % 4), "rejected": "a" * (1 + i % 3)}
        for i in range(64)
    ]
    arguments = [
        "train", *MODEL, "--gin_file=tasks/jsonl_pairs.gin", "--gin_file=objectives/reward_model.gin",
        "--gin_file=optimizers/adamw.gin", "--gin_file=runs/train.gin",
        f"--gin.TRAIN_FILE='{write(folder / 'pairs.jsonl', pairs)}'",
        f"--gin.CACHE_DIR='{folder / 'pairs'}'", f"--gin.MODEL_DIR='{folder / 'run'}'",
        f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}", "--gin.LEARNING_RATE=0.01", "--gin.WARMUP_STEPS=0",
        "--gin.TRAIN_STEPS=30", "--gin.BATCH_SIZE=16", "--gin.LOG_PERIOD=10",
        "--gin.EVAL_PERIOD=0",
    ]  # fmt: skip
    assert main(arguments) == 0
    gin.clear_config()
    return folder


def test_training_finds_the_rule_and_reports_the_length_baseline(world):
    evaluation = json.loads((world / "run" / "summary.json").read_text())["evaluation"]
    assert evaluation["validation/accuracy"] == 1.0
    assert 0 < evaluation["validation/longer_wins"] < 1
    assert evaluation["validation/loss"] < 0.3


def test_the_network_is_read_back_and_is_no_policy(world):
    trained = Run(world / "run").reward()
    network, params, info = trained.network, trained.params, trained.run.description
    assert isinstance(network, RewardNetwork) and info.method == "reward_model"
    stored = restore_params(world / "run", "reward")
    jax.tree.map(np.testing.assert_array_equal, params, stored)
    with pytest.raises(ValueError, match="has no policy network"):
        Run(world / "run").policy()


def test_it_judges(world):
    judge = judges.get_judge(f"reward_model:{world / 'run'}")
    scores = judges.checked_scores(judge, ["say 5"] * 2, ["bb", "aaa"])
    assert scores[0] > scores[1] + 0.5


def test_its_rewards_are_stored_beside_another_task_and_calibrated(world, capsys):
    """The rewards stored are those of the judge, and their isotonic image is in units of the ratings."""
    ratings = [
        {"prompt": f"rate {i}", "response": "ab"[i % 2] * (1 + i % 3), "feedback": 2.0 + i % 2}
        for i in range(40)
    ]
    folder = str(world / "ratings")
    options = {"max_input_length": 16, "max_target_length": 12}
    train_file = str(write(world / "ratings.jsonl", ratings))
    metadata = cache("ratings", folder, kind="triplet", train_file=train_file, **options)
    run = f"--checkpoint={world / 'run'}"
    assert main(["score", run, f"--cache_dir={folder}", "--role=reward", "--name=rm"]) == 0
    found = TaskCache(folder).stored("train", "rm")
    rewards, info = found.values, found.info
    assert info["role"] == "reward" and rewards.shape == (metadata.num_examples["train"], 1)
    texts = [record["response"] for record in ratings]
    judge = judges.get_judge(f"reward_model:{world / 'run'}")
    judged = judge.score([record["prompt"] for record in ratings], texts)
    stored = np.concatenate(
        [TaskCache(folder).stored(split, "rm").values[:, 0] for split in ("train", "validation")]
    )
    np.testing.assert_allclose(np.sort(stored), np.sort(judged), rtol=1e-4, atol=1e-4)
    method = "--method=isotonic"
    assert (
        main(["calibrate", f"--cache_dir={folder}", "--name=rm", "--fit_split=train", method]) == 0
    )
    assert "isotonic  calibration error" in capsys.readouterr().out
    mapped = TaskCache(folder).stored("train", "rm-isotonic").values
    np.testing.assert_allclose(np.unique(np.round(mapped, 5)), [2, 3])
    with pytest.raises(ValueError, match="has no policy network"):
        main(["score", run, f"--cache_dir={folder}", "--verbose"])


@pytest.mark.slow
def test_a_reward_model_starts_from_the_policy_of_a_checkpoint(world):
    """Embedding and encoder are copied: after a step at rate 0 they are still the policy's."""
    common = [
        *MODEL, "--gin_file=tasks/jsonl_pairs.gin", "--gin_file=optimizers/adamw.gin",
        "--gin_file=runs/train.gin", f"--gin.TRAIN_FILE='{world / 'pairs.jsonl'}'",
        f"--gin.CACHE_DIR='{world / 'pairs'}'", f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}",
        "--gin.TRAIN_STEPS=1", "--gin.BATCH_SIZE=8", "--gin.LEARNING_RATE=0.0",
        "--gin.BEST_METRIC=None", "--gin.task_data.TaskData.eval_split=''",
    ]  # fmt: skip
    start = f"--gin.MODEL_DIR='{world / 'sft'}'"
    assert main(["train", "--gin_file=objectives/sft.gin", *common, start]) == 0
    gin.clear_config()
    objective = "--gin_file=objectives/goal_conditioned_reward_model.gin"
    settings = [
        f"--gin.INITIAL_CHECKPOINT_PATH='{world / 'sft'}'",
        f"--gin.MODEL_DIR='{world / 'goal'}'",
    ]
    assert main(["train", objective, *common, *settings]) == 0
    started_from = Run(world / "sft").policy()
    policy_params = started_from.params
    trained = Run(world / "goal").reward()
    network, params = trained.network, trained.params
    assert isinstance(started_from.network, Policy) and network.kind == "decoder_reward"
    assert trained.run.description.content["initial_checkpoint"]["path"] == str(world / "sft")
    for part in ("token_embedder", "encoder"):
        jax.tree.map(np.testing.assert_array_equal, params[part], policy_params[part])
    assert "logits_dense" not in params["decoder"]
    assert restore_params(world / "goal", "statistics")["draws"] == 1


@pytest.mark.slow
def test_meshes_and_microbatches_change_nothing(world):
    """The released contrast has means of the whole batch in it."""
    files = ("tasks/jsonl_pairs", "optimizers/adamw", "runs/train")
    common = [
        *MODEL, *(f"--gin_file={file}.gin" for file in files),
        "--gin_file=objectives/goal_conditioned_reward_model_released.gin",
        f"--gin.TRAIN_FILE='{world / 'pairs.jsonl'}'", f"--gin.CACHE_DIR='{world / 'pairs'}'",
        f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}", "--gin.TRAIN_STEPS=3", "--gin.BATCH_SIZE=16",
        "--gin.WARMUP_STEPS=0", "--gin.LOG_PERIOD=1", "--gin.EVAL_PERIOD=0",
    ]  # fmt: skip
    layouts = {
        "data": [],
        "sharded": [
            "--gin.partitioning.MeshShape.fsdp=2",
            "--gin.partitioning.MeshShape.tensor=2",
            "--gin.MICROBATCHES=2",
        ],
    }
    losses = {}
    for name, layout in layouts.items():
        assert main(["train", *common, *layout, f"--gin.MODEL_DIR='{world / name}'"]) == 0
        gin.clear_config()
        records = read_metrics(world / name / "metrics.jsonl", "train")
        losses[name] = [(record["loss"], record["contrastive_loss"]) for record in records]
    assert len(losses["data"]) == 3
    np.testing.assert_allclose(losses["data"], losses["sharded"], rtol=1e-4)
