"""Density ratios of prompts: whose prompts were mostly liked get ratios above 1, in both splits."""

import json

import numpy as np
import pytest

from jaxalign.annotation.density_ratios import density_ratios
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.interop.convert import convert
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.sft import SFT
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train

CONFIG = T5Config(
    vocab_size=272,
    emb_dim=16,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts of a's are liked nine times in ten, prompts of z's once in ten."""
    made = tmp_path_factory.mktemp("density")
    generator = np.random.default_rng(0)
    with (made / "task.jsonl").open("w") as file:
        for index in range(120):
            letter = "az"[index % 2]
            liked = generator.random() < (0.9 if letter == "a" else 0.1)
            row = {
                "prompt": letter * (1 + index % 7) + str(index),
                "response": "yes",
                "feedback": bool(liked),
            }
            file.write(json.dumps(row) + "\n")
    train(
        model_dir=str(made / "run"),
        objective=SFT(policy=Policy(CONFIG)),
        data=TaskData(
            task="liked",
            cache_dir=str(made / "cache"),
            feature_lengths={"inputs": 16, "targets": 8},
            train_file=str(made / "task.jsonl"),
            eval_split="",
        ),
        optimizers={"policy": adamw(1e-3)},
        loop=LoopConfig(train_steps=1, checkpoint=CheckpointPolicy(period=1), progress=False),
        batch_size=8,
    )
    return made


def test_liked_prompts_have_ratios_above_one(folder, capsys):
    density_ratios(checkpoint=str(folder / "run"), cache_dir=str(folder / "cache"), name="density")
    assert "wrote density ratios 'density'" in capsys.readouterr().out
    for split in ("train", "validation"):
        found = TaskCache(folder / "cache").stored(split, "density")
        ratios, facts = found.values, found.info
        examples = list(TaskCache(str(folder / "cache")).split(split))
        liked = np.array([int(example.inputs[0]) for example in examples])
        letters = np.unique(liked)
        assert len(letters) == 2
        first, last = (ratios[liked == letter, 0] for letter in letters)
        assert np.median(first) > 2 and np.median(last) < 0.5
        assert facts["threshold"] == 0.5


def test_feedback_of_one_kind_is_refused(folder):
    with pytest.raises(UserError, match="desirable and of undesirable"):
        density_ratios(
            checkpoint=str(folder / "run"),
            cache_dir=str(folder / "cache"),
            name="none",
            threshold=5.0,
        )


def test_an_exported_model_gives_the_same_ratios(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "models"))
    convert(checkpoint=str(folder / "run"), output=str(tmp_path / "exported"), to="huggingface")
    stored = []
    for name, run in (("of_the_run", folder / "run"), ("of_the_export", tmp_path / "exported")):
        density_ratios(checkpoint=str(run), cache_dir=str(folder / "cache"), name=name)
        stored.append(TaskCache(folder / "cache").stored("train", name).values)
    np.testing.assert_allclose(*stored, rtol=1e-6)
