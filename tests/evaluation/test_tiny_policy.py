"""Generation and measurement with a real, tiny T5."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.data.evaluation_set import EvaluationSet
from jaxalign.evaluation.evaluate import evaluate
from jaxalign.evaluation.measure import Evaluator
from jaxalign.evaluation.settings import EvaluationSettings
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.generate import generate
from jaxalign.inference.rows import response_tokens, score_responses
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.runs.description import parse_description
from jaxalign.runs.folder import Run, TrainedNetwork

CONFIG = T5Config(
    vocab_size=259,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
PROMPTS = [f"prompt {'x' * i}" for i in range(6)]


class TinyRun(Run):
    """A run folder that is not on disk; the last character of its path is the seed of its parameters."""

    def __init__(self, path, step=None):
        networks = {"policy": Policy(CONFIG), "value": ValueNetwork(CONFIG)}
        self.folder, self.step = Path(path), step or 0
        content = {
            "networks": {role: network.description() for role, network in networks.items()},
            "feature_lengths": {"inputs": 16, "targets": 8},
            "vocabulary": {"kind": "bytes"},
        }
        self.description = parse_description(content, path)


@pytest.fixture(scope="module")
def tiny_run():
    policy = Policy(CONFIG)
    return TrainedNetwork(TinyRun("tiny0"), policy, policy.init(jax.random.key(0)))


@pytest.fixture
def tiny_runs(monkeypatch, tiny_run):
    """A checkpoint path `<anything>N` opens the tiny policy with the seed N."""
    policy, value = tiny_run.network, ValueNetwork(CONFIG)

    def opened(network):
        def open_network(run, role=None):
            seed = int(run.folder.name[-1])
            return TrainedNetwork(run, network, network.init(jax.random.key(seed)))

        return open_network

    monkeypatch.setattr(Run, "__init__", TinyRun.__init__)
    monkeypatch.setattr(Run, "policy", opened(policy))
    monkeypatch.setattr(Run, "value", opened(value))


def test_log_probs_of_samples_equal_their_scores(tiny_run):
    encoded = encoder_of(tiny_run).prompts(PROMPTS).tokens
    settings = DecodingSettings(max_target_length=8, num_samples=2, temperature=0.7, top_k=50)
    tokens, log_probs = generate_tokens(
        tiny_run.network, tiny_run.params, encoded, settings, batch_size=4
    )
    responses = [[response_tokens(row) for row in group] for group in tokens]
    scored, lengths = score_responses(
        tiny_run.network, tiny_run.params, encoded, responses, batch_size=4
    )
    np.testing.assert_allclose(scored, log_probs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(lengths, [[len(r) for r in group] for group in responses])


def test_kl_from_itself_is_exactly_zero_and_from_another_policy_positive(tiny_run):
    settings = EvaluationSettings(prompts="", batch_size=4)
    evaluator = Evaluator(EvaluationSet(PROMPTS, [[] for _ in PROMPTS]), settings)
    assert evaluator.kl(tiny_run, tiny_run, samples=2).mean == 0.0
    sharper = jax.tree.map(lambda leaf: 3.0 * leaf, tiny_run.params)
    other = dataclasses.replace(tiny_run, params=sharper)
    assert evaluator.kl(other, tiny_run, samples=2).mean > 0


def test_beams_come_best_first(tiny_run):
    encoded = encoder_of(tiny_run).prompts(PROMPTS[:2]).tokens
    settings = DecodingSettings(max_target_length=4, num_samples=2, num_beams=3, alpha=0.0)
    tokens, log_probs = generate_tokens(
        tiny_run.network, tiny_run.params, encoded, settings, batch_size=2
    )
    assert tokens.shape == (2, 2, 4)
    assert np.all(log_probs[:, 0] >= log_probs[:, 1])


def test_an_interrupted_run_of_a_real_policy_equals_an_uninterrupted_one(
    tiny_runs, write_lines, tmp_path
):
    prompts = write_lines("prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    whole, torn = str(tmp_path / "whole.jsonl"), str(tmp_path / "torn.jsonl")
    options = {"num_samples": 2, "temperature": 1.0, "batch_size": 4}
    for output in (whole, torn):
        generate("run1", prompts, output, **options)
    content = Path(whole).read_bytes()
    Path(torn).write_bytes(content[: len(content) * 2 // 3])
    generate("run1", prompts, torn, **options)
    assert Path(torn).read_bytes() == content


@pytest.mark.slow
def test_evaluation_of_real_policies(tiny_runs, write_lines, tmp_path):
    records = [
        {"prompt": p, "response": r, "feedback": float(len(r))}
        for p in PROMPTS
        for r in ("short", "longer")
    ]
    result = evaluate(
        ["a=run0", "b=run1"],
        write_lines("feedback.jsonl", records),
        str(tmp_path / "out"),
        judges=["length"],
        batch_size=4,
        bootstrap=20,
    )
    assert result["policies"]["a"]["kl"]["mean"] == 0
    assert result["policies"]["b"]["value"]["count"] == 12
    assert result["policies"]["b"]["ranking"]["longer wins"]["pairwise_accuracy"] == 1
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved == result
