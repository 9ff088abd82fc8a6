"""Inference on several devices: rows are divided among them, and the numbers are those of one device."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxalign.cli.main import main
from jaxalign.data.batches import prompt_rows
from jaxalign.inference.rows import (
    predict_rewards,
    predict_values,
    response_tokens,
    score_responses,
)
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.networks import decoding_rows
from jaxalign.networks.allowed_tokens import token_sets
from jaxalign.networks.config import T5Config
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks
from jaxalign.networks.decoding_scores import PolicyLogRatio
from jaxalign.networks.lora import Lora, LoraPolicy
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import RewardNetwork
from jaxalign.networks.value import ValueNetwork
from jaxalign.parallel import partitioning, row_devices
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.runs.folder import Run
from tests.fixtures.run_folders import write_run

LENGTH = 8
VOCAB_SIZE = 8
CONFIG = T5Config(
    vocab_size=VOCAB_SIZE, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
    num_encoder_layers=1, num_decoder_layers=1,
)  # fmt: skip
POLICY = Policy(CONFIG)
MESHES = {"copies": MeshShape(data=8), "parts": MeshShape(data=2, fsdp=2, tensor=2)}
GREEDY = DecodingSettings(LENGTH)
SAMPLES = DecodingSettings(LENGTH, num_samples=2, temperature=1.0)
BEAMS = DecodingSettings(LENGTH, num_samples=2, num_beams=3)


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(0)
    # At most 16 tokens, so that all batches have one shape.
    return [[*random.integers(2, VOCAB_SIZE, n).tolist(), 1] for n in random.integers(1, 14, 13)]


def test_commands_divide_a_network_that_they_read(tmp_path, monkeypatch):
    policy = Policy(CONFIG.replace(vocab_size=262))
    write_run(tmp_path / "run", "policy", policy, policy.init(jax.random.key(0)))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "ask" * i}) + "\n" for i in range(1, 6)))
    opened, parts = Run.policy, []

    def watched(run, *arguments, **options):
        found = opened(run, *arguments, **options)
        parts.append(found.params["token_embedder"]["embedding"].addressable_shards[0].data.shape)
        return found

    monkeypatch.setattr(Run, "policy", watched)

    def answers(name, *flags):
        output = tmp_path / f"{name}.jsonl"
        paths = [f"--checkpoint={tmp_path / 'run'}", f"--input={prompts}", f"--output={output}"]
        assert main(["generate", *paths, "--temperature=1", *flags]) == 0
        return [json.loads(line)["responses"] for line in output.read_text().splitlines()]

    whole = answers("whole")
    assert answers("divided", "--model_devices=2") == whole
    answers("later")
    assert parts == [(262, 16), (131, 16), (262, 16)]


def test_adapters_and_their_base_are_divided_alike(tmp_path):
    policy = LoraPolicy(CONFIG, lora=Lora(rank=2))
    write_run(tmp_path / "run", "policy", policy, policy.init(jax.random.key(0)))
    with row_devices.divided_networks(2):
        params = Run(tmp_path / "run").policy().params
    kernel = params["encoder"]["layers_0"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 8)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate --model_devices=3", "--model_devices=3 does not divide the 8 devices"),
        ("generate --model_devices=0 --dry_run", "--model_devices=0 must be at least 1"),
        ("train --model_devices=2", "not for train; train divides networks with --MESH_TENSOR"),
        ("vocabulary --model_devices=2", "--model_devices is for score, advantages,"),
    ],
)
def test_devices_that_cannot_divide_a_network_are_refused(command, message, capsys):
    flags = ["--checkpoint=none", "--input=none", "--output=none"]
    name, *given = command.split()
    assert main([name, *given, *(flags if name == "generate" else [])]) == 2
    assert message in capsys.readouterr().err


def on_mesh(network, params, mesh):
    return jax.device_put(params, partitioning.parameter_shardings(mesh, network.logical_axes()))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.array, POLICY.init(jax.random.key(1)))


@pytest.fixture(scope="module")
def steering():
    sets = [list(range(1, VOCAB_SIZE - 1))] * LENGTH
    other = jax.tree.map(np.array, POLICY.init(jax.random.key(2)))

    def hooks(place):
        return Hooks(token_sets(sets, VOCAB_SIZE), PolicyLogRatio(place(other), 0.5, POLICY))

    return hooks


@pytest.mark.parametrize(
    ("axes", "settings", "steered"),
    [
        ("copies", SAMPLES, False),
        ("copies", BEAMS, True),
        ("parts", GREEDY, False),
        ("parts", SAMPLES, True),
        ("parts", BEAMS, False),
    ],
)
def test_responses_are_those_of_one_device(prompts, params, steering, axes, settings, steered):
    mesh = partitioning.make_mesh(MESHES[axes])

    def found(place):
        hooks = steering(place) if steered else NO_HOOKS
        return generate_tokens(
            POLICY, place(params), prompts, settings, batch_size=5, seed=3, hooks=hooks
        )

    one, several = found(lambda tree: tree), found(lambda tree: on_mesh(POLICY, tree, mesh))
    np.testing.assert_array_equal(several[0], one[0])
    np.testing.assert_allclose(several[1], one[1], atol=1e-4)


def test_scores_are_those_of_one_device(prompts, params):
    mesh = partitioning.make_mesh(MESHES["parts"])
    tokens, _ = generate_tokens(POLICY, params, prompts, SAMPLES, batch_size=8)
    responses = [[response_tokens(row) for row in group] for group in tokens]
    for network, compute, texts in (
        (POLICY, lambda *given: score_responses(*given, batch_size=3)[0], responses),
        (
            RewardNetwork(CONFIG),
            lambda *given: predict_rewards(*given, batch_size=3),
            [group[0] for group in responses],
        ),
        (
            ValueNetwork(CONFIG),
            lambda network, params, prompts, _: predict_values(
                network, params, prompts, batch_size=3
            ),
            None,
        ),
    ):
        own = network.init(jax.random.key(4))
        several = compute(network, on_mesh(network, own, mesh), prompts, texts)
        np.testing.assert_allclose(several, compute(network, own, prompts, texts), atol=1e-4)


def test_each_device_decodes_its_rows(params):
    """Counts the rows of the cache on each device: a copy of all rows would give the same numbers, and no speed."""
    mesh = partitioning.make_mesh(MESHES["copies"])
    placed = on_mesh(POLICY, params, mesh)
    devices = row_devices.RowDevices(placed)
    with devices.active():
        tokens = devices.put(prompt_rows([[5, 1]] * 16, 16))
        encoded = decoding_rows.encode(POLICY, placed, tokens, NO_HOOKS, max_decode_len=LENGTH)
        constants = decoding_rows.constants(POLICY, placed, NO_HOOKS, max_decode_len=LENGTH)
        rows = devices.put(
            decoding_rows.idle_rows(
                POLICY,
                NO_HOOKS,
                num_rows=16,
                num_samples=2,
                num_slots=LENGTH,
                max_decode_len=LENGTH,
            )
        )
        numbers = np.arange(16, dtype=np.int32)
        rows, reading = decoding_rows.replace_rows(
            rows,
            encoded,
            jax.tree.map(lambda leaf: leaf + 0, encoded),
            numbers,
            numbers,
            jax.random.key(0),
            NO_HOOKS,
            max_decode_len=LENGTH,
        )
        rows = decoding_rows.decode(
            POLICY, constants, reading, rows, np.float32(1), np.float32(1), np.int32(4),
            np.int32(16), NO_HOOKS, greedy=False, top_k=0, nucleus=False, max_decode_len=LENGTH,
        )  # fmt: skip
    for leaf in jax.tree.leaves((rows.tokens, rows.cache, reading)):
        (count,) = {shard.data.shape[0] for shard in leaf.addressable_shards}
        assert count == leaf.shape[0] // 8


def test_a_network_lies_on_every_device_of_an_accelerator_and_on_one_of_a_cpu():
    assert isinstance(row_devices.default_sharding(), SingleDeviceSharding)
    several = row_devices.default_sharding(jax.devices()[:4])
    assert isinstance(several, NamedSharding) and several.mesh.size == 4
    assert several.spec == PartitionSpec()


def test_rows_are_as_many_as_the_devices_divide(params):
    devices = row_devices.RowDevices(
        on_mesh(POLICY, params, partitioning.make_mesh(MESHES["copies"]))
    )
    assert [devices.multiple(rows) for rows in (1, 8, 9)] == [8, 8, 16]
    assert row_devices.RowDevices(params).multiple(5) == 5
