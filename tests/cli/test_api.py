"""The package from Python: what it gives is what the commands give."""

import json
import subprocess
import sys

import numpy as np
import pytest

import jaxalign
from jaxalign.errors import UserError
from jaxalign.inference.generate import generate

PROMPTS = ["one", "two words", "three"]


def test_importing_the_package_loads_neither_jax_nor_the_parts():
    code = (
        "import jaxalign, sys; print('jax' in sys.modules, 'jaxalign.api' in sys.modules); "
        "import jaxalign.train; from jaxalign import load_run; print(callable(load_run))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False", "True"]
    assert set(jaxalign.__all__) <= set(dir(jaxalign))
    for name in jaxalign.__all__:
        assert callable(getattr(jaxalign, name))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = jaxalign.trian


def test_responses_and_scores_are_those_of_the_command(runs, tmp_path):
    run = jaxalign.load_run(runs["a"])
    options = {"num_samples": 2, "temperature": 1.0, "max_target_length": 5, "seed": 3}
    texts = run.generate(PROMPTS, **options)
    file, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    generate(runs["a"], str(file), str(output), **options)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert texts == [line["responses"] for line in lines]
    assert run.step == 3 and "policy" in repr(run)

    responses = ["ab", "c", "def"]
    scores = run.score(PROMPTS, responses)
    # Bytes, and EOS.
    np.testing.assert_allclose(
        run.score(PROMPTS, responses, per_token=True), scores / [3, 2, 4], rtol=1e-6
    )
    # A response's score does not depend on the others.
    np.testing.assert_allclose(run.score(PROMPTS[1:2], responses[1:2]), scores[1:2], rtol=1e-5)


def test_a_reward_run_gives_rewards_and_says_what_it_lacks(runs):
    run = jaxalign.load_run(runs["prefixes"])
    rewards = run.rewards(["one", "one"], ["a", "b"])
    assert rewards.shape == (2,) and rewards[0] != rewards[1]
    with pytest.raises(UserError, match="no policy network"):
        run.generate(["one"])
    with pytest.raises(UserError, match="no value network"):
        run.values(["one"])


def test_a_text_in_the_place_of_a_list_is_refused(runs):
    run = jaxalign.load_run(runs["a"])
    with pytest.raises(UserError, match="prompts must be a list of texts"):
        run.generate("one")
    with pytest.raises(UserError, match="2 responses for 1 prompts"):
        run.score(["one"], ["a", "b"])


def test_from_a_file_to_a_trained_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"say {i}", "response": f"the number {i}", "feedback": float(i % 2)}
        for i in range(60)
    ]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jaxalign.inspect("my.jsonl", model="tiny", vocab_size=60)
    run = jaxalign.train(
        "my.gin",
        bindings={"DROV.temperature": 0.3},
        MODEL_DIR="runs/my",
        TRAIN_STEPS=2,
        BATCH_SIZE=8,
    )
    assert run.step == 2 and run.path.name == "my"
    assert [record["step"] for record in run.metrics()][-1] == 2
    assert "DROV.temperature = 0.3" in (tmp_path / "runs/my/config.gin").read_text()
    assert run.values(["say 3"]).shape == (1,)
    # V, as the networks give it at this step.
    assert jaxalign.load_run("runs/my", step=2).values(["say 3"]) == run.values(["say 3"])
    # The same call finds the finished run.
    again = jaxalign.train("my.gin", bindings={"DROV.temperature": 0.3}, MODEL_DIR="runs/my", TRAIN_STEPS=2, BATCH_SIZE=8)  # fmt: skip
    np.testing.assert_array_equal(again.score(["say 3"], ["3"]), run.score(["say 3"], ["3"]))
    with pytest.raises(UserError, match="TRAIN_STEPS"):
        jaxalign.train("my.gin", MODEL_DIR="runs/other", TRAIN_STEPS="many")
    with pytest.raises(UserError, match="give a number, a text"):
        jaxalign.train("my.gin", MODEL_DIR="runs/other", TRAIN_STEPS=object())
