"""A run records how its prompts were cut and its rows laid out, and commands take it from there."""

import json

import pytest

from jaxalign.data.task_data import TaskData
from jaxalign.inference.encoders import encoder_of
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.sft import SFT
from jaxalign.runs.folder import Run
from jaxalign.training import run_folder
from jaxalign.training.launch import open_launch

POLICY = Policy(
    T5Config(
        vocab_size=260, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8,
        num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",),
    )
)  # fmt: skip
ROWS = {"inputs": 64, "targets": 48}


@pytest.mark.parametrize(("pack", "row_lengths"), [(True, ROWS), (True, None), (False, ROWS)])
def test_cutting_and_rows_are_recorded_and_read(pack, row_lengths, tmp_path):
    file = tmp_path / "data.jsonl"
    lines = [{"prompt": f"a long prompt {i}", "response": "r", "feedback": i} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TaskData(
        task="mine",
        cache_dir=str(tmp_path / "cache"),
        feature_lengths={"inputs": 8, "targets": 6},
        train_file=str(file),
        long_prompts="truncate_left",
        pack=pack,
        row_lengths=row_lengths,
    )
    metadata = data.prepare()
    (tmp_path / "run").mkdir()
    objective = SFT(policy=POLICY)
    launch = open_launch(tmp_path / "run", objective, data, metadata)
    run_folder.write_description(launch, objective, data, metadata, {})
    info = json.loads((tmp_path / "run" / "networks.json").read_text())
    assert info["long_prompts"] == "truncate_left"
    assert info["row_lengths"] == (row_lengths if pack else None)
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    run = Run(tmp_path / "run")
    assert run.description.row_lengths == info["row_lengths"]
    example = data.cache().split("train")[0]
    assert encoder_of(run).prompts([example.prompt]).tokens == [example.inputs.tolist()]
    assert encoder_of(run, long_prompts="truncate").prompts([example.prompt]).tokens != [
        example.inputs.tolist()
    ]
    # Runs converted from elsewhere say nothing of it.
    info.pop("long_prompts")
    (tmp_path / "run" / "networks.json").write_text(json.dumps(info))
    assert Run(tmp_path / "run").long_prompts == "truncate"
