"""Responses of the policy during training: the same as greedy decoding gives, kept in step with the run."""

import json
import types

import numpy as np
import pytest

from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.runs.folder import Run
from jaxalign.runs.metrics import keep_lines_up_to
from jaxalign.runs.samples import SAMPLES_FILE, read_samples
from jaxalign.training.samples import make_sampler

PROMPTS = ("inform(name=a)", "inform(name=b)")


@pytest.fixture(scope="module")
def opened(runs):
    return Run(runs["a"]).policy()


def _data(opened):
    encoder = encoder_of(opened.run)
    examples = [
        types.SimpleNamespace(
            prompt_id=i, prompt=text, inputs=np.array(encoder.prompts([text]).tokens[0])
        )
        for i, text in enumerate(PROMPTS)
    ]
    # The second response to a prompt is an example of its own.
    cache = types.SimpleNamespace(split=lambda name: [examples[0], examples[0], examples[1]])
    return types.SimpleNamespace(
        cache=lambda: cache,
        eval_split="validation",
        load_vocabulary=lambda: opened.vocabulary,
        feature_lengths={"inputs": 64, "targets": 16},
    )


def _objective(**roles):
    return types.SimpleNamespace(trained=lambda: roles)


def test_samples_are_the_greedy_responses(opened, tmp_path):
    sent = []
    sampler = make_sampler(
        _objective(policy=opened.network),
        _data(opened),
        tmp_path,
        2,
        also=lambda *a: sent.append(a),
    )["samples"]
    metrics = sampler(5, {"policy": opened.params})
    encoder = encoder_of(opened.run)
    texts, log_probs = generate_responses(
        opened.network, opened.params, encoder, PROMPTS, DecodingSettings(max_target_length=16)
    )
    samples = read_samples(tmp_path)
    assert [(s["prompt"], s["response"]) for s in samples] == [
        (prompt, group[0]) for prompt, group in zip(PROMPTS, texts, strict=True)
    ]
    assert metrics["log_prob"] == pytest.approx(log_probs.mean(), rel=1e-5)
    assert 0 < metrics["response_length"] <= 16 and 0 <= metrics["finished"] <= 1
    assert [step for step, _ in sent] == [5] and len(sent[0][1]) == 2


def test_a_resumed_run_drops_later_samples_and_the_newest_of_a_step_counts(opened, tmp_path):
    def line(step, response):
        return json.dumps({"step": step, "split": "samples", "prompt": "p", "response": response})

    (tmp_path / SAMPLES_FILE).write_text(
        "\n".join([line(1, "old"), line(1, "new"), line(2, "lost")]) + "\n"
    )
    make_sampler(_objective(policy=opened.network), _data(opened), tmp_path, 1, resume_step=1)
    assert [s["response"] for s in read_samples(tmp_path)] == ["new"]


def test_without_a_policy_or_prompts_nothing_is_sampled(opened, tmp_path):
    assert make_sampler(_objective(), _data(opened), tmp_path, 2) == {}
    assert make_sampler(_objective(policy=opened.network), _data(opened), tmp_path, 0) == {}


def test_several_processes_train_without_samples_and_say_so(opened, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxalign.parallel.distributed.is_multiprocess", lambda: True)
    assert make_sampler(_objective(policy=opened.network), _data(opened), tmp_path, 2) == {}
    assert "several processes, so there are no samples" in capsys.readouterr().err


def test_separators_of_lines_inside_a_response_are_text(tmp_path):
    text = "a\u2028b\u2029c\u0085d"
    record = {"step": 1, "split": "samples", "prompt": text, "response": text}
    (tmp_path / SAMPLES_FILE).write_text(json.dumps(record, ensure_ascii=False) + "\n")
    keep_lines_up_to(tmp_path / SAMPLES_FILE, 1)
    assert read_samples(tmp_path) == [record]
