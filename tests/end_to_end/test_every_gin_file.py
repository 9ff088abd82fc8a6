"""`jaxalign train` with the gin file of every method, on real human ratings and eight fake devices: two steps and an evaluation."""

import itertools
import json
import re
from pathlib import Path

import gin
import numpy as np
import pytest

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.cli.main import main
from jaxalign.data import cache as cache_module
from jaxalign.data.stored_fields import ARRAY_FIELDS
from jaxalign.data.task_cache import TaskCache
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.responses import Pairwise

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
NAMES = sorted(path.stem for path in (CONFIGS / "objectives").glob("*.gin"))
LENGTHS = {"inputs": 160, "targets": 160}
SHAPE_ONLY = T5Config(
    vocab_size=384, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8,
    num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",),
)  # fmt: skip
# What a file leaves open or what these data call for.
MACROS = {"VALUE_TOKEN": 300, "NUM_FEATURES": 3}


def needs(name):
    """Responses per prompt, and stored fields, that the objective of a file wants."""
    text = (CONFIGS / "objectives" / f"{name}.gin").read_text()
    included = re.findall(r"^include 'objectives/(\w+).gin'", text, re.MULTILINE)
    text += "".join((CONFIGS / "objectives" / f"{other}.gin").read_text() for other in included)
    macros = {key: value for key, value in MACROS.items() if key in text}
    token = macros.get("VALUE_TOKEN")
    policy = Policy(SHAPE_ONLY, value_token=token)
    objective = objective_from_gin([name], macros, policy=policy)
    responses = getattr(objective, "responses_per_prompt", None)
    if isinstance(objective, Pairwise) and responses is None:
        responses = 2
    return responses or 2, objective.required_fields(), macros


@pytest.fixture(scope="module")
def caches(shared_dir, tmp_path_factory):
    """One cache per number of responses, with every field a method may ask for."""
    folder = tmp_path_factory.mktemp("ratings")
    made = {}

    def make(responses):
        if responses in made:
            return made[responses]
        cache_dir = folder / f"cache{responses}"
        for split, source in (("train", "train"), ("validation", "dev")):
            lines = (shared_dir / "data" / f"nlg_ratings.multi.{source}.jsonl").read_text()
            rows = [json.loads(line) for line in lines.splitlines()]
            groups = {}
            for row in rows:
                groups.setdefault(row["prompt"], []).append(row)
            with (folder / f"{split}{responses}.jsonl").open("w") as file:
                for prompt, group in itertools.islice(
                    groups.items(), 200 if responses < 3 else None
                ):
                    group = sorted(group, key=lambda row: -row["scores"]["quality"])
                    group = (group * responses)[:responses] if len(group) > 1 else group
                    quality = [(row["scores"]["quality"] - 1) / 5 for row in group]
                    if len(group) < responses or (quality[0] == quality[-1] and responses > 1):
                        continue
                    record = {
                        "prompt": prompt,
                        "responses": [row["response"] for row in group],
                        "scores": [row["scores"] for row in group],
                        "feedback": quality,
                        "reference_feedback": [0.2, 0.5, 0.7],
                    }
                    file.write(json.dumps(record) + "\n")
        metadata = cache_module.cache(
            "ratings", str(cache_dir), kind="multi",
            train_file=str(folder / f"train{responses}.jsonl"),
            validation_file=str(folder / f"validation{responses}.jsonl"),
            max_input_length=LENGTHS["inputs"], max_target_length=LENGTHS["targets"],
            max_rejected_fraction=0.5,
        )  # fmt: skip
        generator = np.random.default_rng(0)
        for split, count in metadata.num_examples.items():
            assert count >= (16 if split == "train" else 4)
            for field in ARRAY_FIELDS:
                values = np.abs(generator.normal(size=(count, responses))).astype(np.float32)
                TaskCache(cache_dir).write_stored(split, field, values, {})
        made[responses] = cache_dir
        return cache_dir

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_method_trains_from_its_gin_file(name, caches, tmp_path, capsys):
    responses, fields, macros = needs(name)
    gin.clear_config()
    stored = {field: field for field in ARRAY_FIELDS if field in fields}
    settings = {
        "MODEL_DIR": repr(str(tmp_path / "run")),
        "CACHE_DIR": repr(str(caches(responses))),
        "MIXTURE_OR_TASK_NAME": repr("ratings"),
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "VOCABULARY": None,
        "TRAIN_FILE": None,
        "VOCAB_SIZE": 384,
        "BATCH_SIZE": 8,
        "TRAIN_STEPS": 2,
        "STORED_FIELDS": stored,
        **macros,
    }
    files = [
        "models/tiny",
        "tasks/jsonl_triplets",
        f"objectives/{name}",
        "optimizers/adamw",
        "runs/train",
    ]
    command = ["train", *(f"--gin_file={file}.gin" for file in files)]
    command += [f"--gin.{key}={value}" for key, value in settings.items()]
    assert main(command) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["step"] == 2
    assert np.isfinite(summary["train"]["loss"]) and np.isfinite(
        summary["evaluation"]["validation/loss"]
    )
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["devices"].startswith("8 x")
    gin.clear_config()
