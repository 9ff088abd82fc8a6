"""`benchmarks/gpu_step.py`: its counts, its search, and a run without data, TensorFlow, seqio, gin and grain."""

import importlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork


@pytest.fixture
def gpu_step(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("gpu_step")


def test_counted_operations_equal_those_of_xla(gpu_step):
    # Without scan, recomputation and chunks, so that XLA counts every product once. The network is wide, so that products dominate.
    config = T5Config(
        vocab_size=512, emb_dim=128, num_heads=2, head_dim=64, mlp_dim=256, num_encoder_layers=2,
        num_decoder_layers=3,
    )  # fmt: skip
    rows, source, target = 2, 96, 32
    policy, value = Policy(config, logits_chunk_size=None), ValueNetwork(config)
    sizes = {"encoder": source, "decoder": target}
    batch = {
        **{
            f"{side}_{name}": jnp.ones((rows, length), jnp.int32)
            for side, length in sizes.items()
            for name in ("input_tokens", "target_tokens", "segment_ids", "loss_weights")
        },
        "response_mask": jnp.ones((rows, 1, 1)),
    }

    def counted(function, params):
        (cost,) = [jax.jit(function).lower(params).compile().cost_analysis()]
        return cost["flops"]

    def log_probs(params):
        return policy.score(params, batch).log_probs.sum()

    sft = gpu_step.step_flops(config, "sft", rows, source, target)
    assert counted(log_probs, policy.abstract_params()) == pytest.approx(sft / 3, rel=0.05)
    assert counted(jax.grad(log_probs), policy.abstract_params()) == pytest.approx(sft, rel=0.05)
    both = gpu_step.step_flops(config, "dro_v", rows, source, target)
    of_value = counted(
        jax.grad(lambda params: value.values(params, batch).sum()), value.abstract_params()
    )
    assert of_value == pytest.approx(both - sft, rel=0.05)


@pytest.mark.parametrize("capacity", [0, 1, 5, 8, 37, 64, 100])
@pytest.mark.parametrize("limit", [1, 12, 64])
def test_the_search_ends_within_an_eighth_of_the_largest_batch(gpu_step, capacity, limit):
    tried = []

    def fits(rows):
        tried.append(rows)
        return rows <= capacity

    found = gpu_step.largest_batch(fits, limit)
    best = min(capacity, limit)
    assert found <= best and best - found <= found // 8
    assert max(tried) <= limit and min(tried) > 0
    assert len(tried) <= 12


def test_an_unknown_model_is_refused(gpu_step, capsys):
    with pytest.raises(SystemExit):
        gpu_step.parse(["--model", "t5_huge"])
    assert "t5_huge" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_runs_with_a_tiny_model_and_imports_no_data_library(repository, tmp_path):
    program = """if True:
        import sys
        for name in ("tensorflow", "seqio", "gin", "grain", "array_record"):
            sys.modules[name] = None  # importing it fails
        sys.path.insert(0, "benchmarks")
        import gpu_step
        gpu_step.main()
    """
    out = tmp_path / "out.json"
    options = "--model tiny --device cpu --inputs 32 --targets 16 --filled 0.7 --max_batch 8 --seconds 0.1"
    options += f" --json {out} --profile {tmp_path / 'profile'}"
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", program, *options.split()],
        cwd=repository, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    for result, objective in zip(report["results"], ("sft", "dro_v"), strict=True):
        assert result["objective"] == objective
        assert result["rows"] == 8
        assert result["mfu"] > 0 and result["xla_gib"] > 0
        padded = 48 * result["sequences_per_second"]
        assert 0.4 * padded < result["non_padding_tokens_per_second"] < padded
        assert ("value_forward_backward" in result["parts_seconds"]) == (objective == "dro_v")
        assert list((tmp_path / "profile" / f"tiny_{objective}").rglob("*"))
    assert "| tiny dro_v" in done.stdout and "rows: " in done.stderr
