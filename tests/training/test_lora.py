"""Training of low-rank adapters: what a step changes, and what a run folder holds."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.interop import checkpoint_sources, parameters
from jaxalign.interop.convert import convert
from jaxalign.networks import adapters
from jaxalign.networks.leaves import merge_leaves
from jaxalign.networks.lora import Lora, LoraPolicy
from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import stack_layers, unstack_layers
from jaxalign.objectives.dro import DROP
from jaxalign.objectives.sft import SFT
from jaxalign.parallel import partitioning
from jaxalign.parallel.devices import Devices
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.runs.checkpoints import restore_params
from jaxalign.runs.folder import Run
from jaxalign.training import build, launch
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adafactor
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from jaxalign.training.state import create_state
from tests.fixtures.families import FAMILIES
from tests.fixtures.run_folders import write_run

STEPS = 3


@pytest.fixture(scope="module")
def policy(world):
    return LoraPolicy(world.policy.config, lora=Lora(rank=2, targets="/(query|wo)/"))


@pytest.fixture(scope="module")
def start(policy):
    return jax.jit(policy.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def steps(random_batch):
    """Trains on a mesh with a live reference; returns metrics by step, the state and the frozen leaves."""

    def run(policy, params, shape, devices, microbatches=1):
        mesh = partitioning.make_mesh(shape, jax.devices()[:devices])
        objective = DROP(policy=policy, reference="live")
        transformations = build.make_transformations(objective, {"policy": adafactor(1e-2)})
        trained, leaves = build.split_params(objective, {"policy": params})
        shapes, places = build.abstract_frozen(objective, mesh, {})
        assert list(shapes) == ["policy"]  # the base, and no reference besides
        built = build.build_step(
            objective,
            transformations=transformations,
            abstract=build.abstract_state(objective, transformations),
            mesh=mesh,
            rules={},
            frozen_shardings=places,
            batch=random_batch(0),
            microbatches=microbatches,
        )
        state = create_state(jax.tree.map(jnp.copy, trained), transformations)
        state = jax.device_put(state, built.shardings)
        frozen, history = jax.device_put(leaves, places), []
        for seed in range(STEPS):
            batch = partitioning.make_global_batch(mesh, random_batch(seed))
            state, metrics = built.step(state, frozen, batch)
            history.append({name: float(m.total / m.weight) for name, m in metrics.items()})
        return history, state, frozen

    return run


@pytest.fixture(scope="module")
def plain(steps, policy, start):
    return steps(policy, start, MeshShape(), 1)


def test_the_reference_is_the_base(plain, policy, start, random_batch):
    """Before the first update, policy and reference are equal; later the log-ratio is measured from the base."""
    history, state, frozen = plain
    assert history[0]["log_ratio_squared"] == 0.0
    assert history[-1]["log_ratio_squared"] > 1e-6
    objective = DROP(policy=policy, reference="live")
    params = objective.complete({"policy": merge_leaves(frozen["policy"], state.params["policy"])})
    expected = policy.base.score(policy.start_params(start), random_batch(0)).log_probs
    found = objective.reference_log_probs(params, random_batch(0))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_base_has_neither_gradient_nor_slots(plain, start):
    _, state, frozen = plain
    own = adapters.only(start)
    assert jax.tree.structure(state.params["policy"]) == jax.tree.structure(own)
    jax.tree.map(np.testing.assert_array_equal, frozen["policy"], adapters.without(start))
    largest = max(leaf.size for leaf in jax.tree.leaves(own))
    slots = [leaf.size for leaf in jax.tree.leaves(state.opt_state["policy"])]
    assert max(slots) <= largest
    assert sum(slots) < 1.1 * sum(leaf.size for leaf in jax.tree.leaves(own)) + 100
    # After one update A has a gradient too.
    assert not any(
        np.array_equal(one, other)
        for one, other in zip(
            jax.tree.leaves(own), jax.tree.leaves(state.params["policy"]), strict=True
        )
    )


@pytest.mark.slow
def test_mesh_microbatches_and_stacked_layers_change_nothing(plain, steps, policy, start):
    config = policy.config.replace(scan_layers=True)
    stacked = dataclasses.replace(policy, config=config)
    found, state, _ = steps(stacked, stack_layers(start), MeshShape(data=2, fsdp=2, tensor=1), 4, 2)
    expected, plain_state, _ = plain
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5),
        state.params["policy"],
        stack_layers(plain_state.params["policy"]),
    )


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory):
    """`trained(name, steps, base, **lora)`: runs with adapters on the policy `a` in one folder; a run that is there continues."""
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(runs["a"], folder / "base")
    feedback = folder / "feedback.jsonl"
    records = (
        {"prompt": f"say {i}", "response": "x" * (1 + i % 7), "feedback": 1.0} for i in range(40)
    )
    feedback.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(name, steps, base="base", network="base", **settings):
        config = Run(folder / network).config("policy")
        train(
            model_dir=str(folder / name),
            objective=SFT(policy=LoraPolicy(config, lora=Lora(**{"rank": 2} | settings))),
            data=TaskData(
                task="tiny",
                cache_dir=str(folder / "cache"),
                feature_lengths={"inputs": 16, "targets": 16},
                train_file=str(feedback),
                vocabulary="bytes",
                extra_ids=0,
            ),
            optimizers={"policy": adafactor(1e-2)},
            loop=LoopConfig(
                train_steps=steps,
                eval_period=0,
                checkpoint=CheckpointPolicy(period=1, keep_latest=None),
                progress=False,
            ),
            batch_size=8,
            devices=Devices(mesh=MeshShape(data=4, fsdp=2, tensor=1)),
            start_from=StartFrom(str(folder / base)),
        )
        return folder / name

    return make


@pytest.fixture(scope="module")
def run(trained):
    return trained("run", 2, dropout=0.5)


def _equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_checkpoint_holds_adapters_and_names_their_base(run):
    stored = restore_params(run, "policy")
    assert adapters.without(stored) == {
        stack: {"layers_0": found} for stack, found in _empty(stored).items()
    }
    assert not (run / "frozen_leaves").exists()
    base = json.loads((run / "networks.json").read_text())["base"]
    assert (base["path"], base["step"]) == (str(run.parent / "base"), 3)
    assert json.loads((run / "checkpoints/2/metadata/metadata").read_text())["base"] == base
    # Six adapters of width 8, and Adafactor's slots: the base would be 300 times as large.
    assert sum(leaf.size for leaf in jax.tree.leaves(stored)) == 6 * 2 * (2 * 8)
    assert "policy: 5,336 frozen parameters" in (run / "model-info.txt").read_text()


def _empty(tree):
    return {
        stack: {name: {inner: {} for inner in maps} for name, maps in branch["layers_0"].items()}
        for stack, branch in tree.items()
    }


def test_a_run_with_adapters_is_read_as_a_policy_without(run):
    opened = Run(run).policy()
    assert type(opened.network) is Policy
    base, own = Run(run.parent / "base").policy().params, restore_params(run, "policy")
    expected = Run(run).network("policy").merge(base, own)
    _equal(opened.params, expected)
    changed = opened.params["encoder"]["layers_0"]["attention"]["query"]["kernel"]
    assert not np.array_equal(changed, base["encoder"]["layers_0"]["attention"]["query"]["kernel"])
    _equal(opened.params["token_embedder"], base["token_embedder"])


@pytest.mark.slow
def test_a_continued_run_equals_an_uninterrupted_one(run, trained):
    one, other = trained("run", 3, dropout=0.5), trained("whole", 3, dropout=0.5)
    _equal(Run(one, 3).policy().params, Run(other, 3).policy().params)


def test_other_settings_are_refused_before_anything_is_read(run, trained):
    with pytest.raises(
        UserError, match=r"whose policy has lora.alpha 16.0, and this command says 8"
    ):
        trained("run", 4, dropout=0.5, alpha=8.0)


def test_an_exported_folder_has_the_merged_kernels(run, tmp_path):
    convert(checkpoint=str(run), output=str(tmp_path / "hf"), to="huggingface", step=2)
    found = checkpoint_sources.open_source(tmp_path / "hf").params
    expected = parameters.flatten(Run(run, 2).policy().params)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array.read(), expected[name], err_msg=name)


@pytest.mark.slow
def test_adapters_of_stacked_pairs_are_exported_layer_by_layer(run, trained, tmp_path):
    policy = Policy(FAMILIES["t5gemma"].replace(vocab_size=262, scan_layers=True))
    write_run(run.parent / "gemma", "policy", policy, policy.init(jax.random.key(0)))
    own = trained("on-gemma", 1, base="gemma", network="gemma", targets="layers/.*kernel")
    convert(checkpoint=str(own), output=str(tmp_path / "hf"), to="huggingface")
    convert(checkpoint=str(run.parent / "gemma"), output=str(tmp_path / "base"), to="huggingface")
    found, base = (
        checkpoint_sources.open_source(tmp_path / name).params for name in ("hf", "base")
    )
    merged = parameters.flatten(
        unstack_layers(Run(own).policy().params, cycle=policy.config.LAYER_CYCLE)
    )
    assert found.keys() == base.keys() == merged.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array.read(), merged[name], err_msg=name)
        adapted = name.endswith("kernel") and "layers_" in name
        assert np.array_equal(array.read(), base[name].read()) != adapted, name


@pytest.mark.slow
def test_a_base_of_another_system_is_stored_once(run, trained, tmp_path):
    """Also the chain: adapters on a policy that another run's adapters made, with a base in bfloat16."""
    convert(checkpoint=str(run), output=str(run.parent / "hf"), to="huggingface", step=2)
    other = trained("on-hf", 1, base="hf", base_dtype="bfloat16")
    assert (other / "frozen_leaves").is_dir()
    start, end = Run(run, 2).policy().params, Run(other).policy().params
    kernel = start["decoder"]["logits_dense"]["kernel"]
    np.testing.assert_array_equal(end["decoder"]["logits_dense"]["kernel"], kernel.astype(jnp.bfloat16))  # fmt: skip
    assert end["decoder"]["logits_dense"]["kernel"].dtype == jnp.float32


@pytest.mark.slow
def test_adapters_on_adapters_are_known_by_what_is_stored(run, trained):
    """Merged kernels have other last bits on another machine; such a base is accepted, and another one is not."""
    chain = trained("chain", 1, base="run")
    recorded = json.loads((chain / "networks.json").read_text())["base"]
    below = Run(run, recorded["step"])
    noisy = jax.tree.map(lambda leaf: leaf * (1 + 1e-7), below.policy().params)
    assert below.policy_digest(noisy) == recorded["digest"]
    assert Run(run, 1).policy_digest(noisy) != recorded["digest"]
    _equal(Run(chain).policy().params["token_embedder"], below.policy().params["token_embedder"])


def test_another_base_is_refused(run, tmp_path):
    for name in ("base", "run"):
        shutil.copytree(run.parent / name, tmp_path / name)
    base, copy = tmp_path / "base", tmp_path / "run"
    described = json.loads((copy / "networks.json").read_text())
    described["base"]["path"] = str(tmp_path / "nowhere")
    (copy / "networks.json").write_text(json.dumps(described))
    # Both folders moved together.
    _equal(Run(copy, 2).policy().params, Run(run, 2).policy().params)

    # Another run has come to the recorded path.
    other = shutil.copytree(base, tmp_path / "nowhere")
    taken = json.loads((other / "networks.json").read_text())
    (other / "networks.json").write_text(json.dumps(taken | {"run_id": "taken"}))
    _equal(Run(copy, 2).policy().params, Run(run, 2).policy().params)
    shutil.rmtree(other)

    own = json.loads((base / "networks.json").read_text())
    (base / "networks.json").write_text(json.dumps(own | {"run_id": "b"}))
    with pytest.raises(UserError, match=r"holds adapters of run a, step 3, and .*base is run b"):
        Run(copy, 2).policy()
    shutil.rmtree(base)
    with pytest.raises(
        UserError, match=r"holds only adapters, and their base .*nowhere .* is missing"
    ):
        Run(copy, 2).policy()


def test_a_base_with_other_values_is_refused(run, runs, tmp_path):
    for name, source in (("base", runs["b"]), ("run", run)):
        shutil.copytree(source, tmp_path / name)
    described = json.loads((tmp_path / "run/networks.json").read_text())
    described["base"] |= {"path": str(tmp_path / "base"), "run_id": "b"}
    (tmp_path / "run/networks.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="adapters of parameters with the fingerprint"):
        Run(tmp_path / "run", 2).policy()


def test_earlier_runs_without_adapters_do_not_continue_with_them(world):
    objective = SFT(policy=LoraPolicy(world.policy.config))
    earlier = {"networks": {"policy": world.policy.description()}}
    with pytest.raises(UserError, match=r"lora.alpha None, and this command says 16.0"):
        launch.check_same_adapters("run", earlier, objective)
