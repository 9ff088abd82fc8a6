"""The search for the smallest change, with a stand-in for the compiler."""

import dataclasses

import jax
import pytest

from jaxalign.errors import UserError
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.planning.compile_spec import (
    CompileResult,
    CompileSpec,
    refused_bytes,
    replace_configs,
)
from jaxalign.planning.smallest_change import candidates, smallest_change
from jaxalign.training.optimizers import adafactor

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    remat_policy="minimal",
)
MESH = {"slice": 1, "data": 2, "fsdp": 4, "tensor": 1}


def spec_of(rows=32, **changes):
    config = CONFIG.replace(**changes)
    return CompileSpec(
        objective=DROV(policy=Policy(config), value=ValueNetwork(config)),
        optimizers={"policy": adafactor()},
        batch={"encoder_input_tokens": jax.ShapeDtypeStruct((rows, 16), "int32")},
        microbatches=1,
        mesh=MeshShape(data=2, fsdp=4),
        rules={},
    )


def outcome(fits):
    return CompileResult(
        mesh=MESH,
        parameter_bytes=1,
        optimizer_bytes=1,
        batch_bytes=1,
        peak_bytes=10,
        usable_bytes=None,
        program_bytes=0,
        compile_seconds=0.0,
        compiled=None,
        reason=None if fits else "too large",
    )


def compiler(condition):
    asked = []

    def compile_one(spec):
        asked.append(spec)
        return outcome(condition(spec))

    return compile_one, asked


def test_single_changes_come_before_combinations_and_cheap_changes_come_first():
    changes = [tuple(change) for change, _ in candidates(spec_of(), MESH)]
    assert changes[0] == ("MESH_DATA", "MESH_FSDP")
    sizes = [len(set(change) - {"MESH_DATA"}) for change in changes]
    assert sizes == sorted(sizes)
    assert max(sizes) == 3


def test_the_first_change_that_fits_is_taken():
    compile_one, asked = compiler(lambda s: s.remat_policy == "full")
    found, trials = smallest_change(spec_of(), MESH, compile_one)
    assert found.changes == {"REMAT_POLICY": "full"}
    assert len(trials) == len(asked)
    assert not any(trial.outcome.fits for trial in trials[:-1])


def test_changes_are_combined_where_one_is_not_enough():
    compile_one, _ = compiler(lambda s: s.remat_policy == "full" and s.microbatches == 4)
    found, _ = smallest_change(spec_of(), MESH, compile_one, max_trials=50)
    assert found.changes == {"MICROBATCHES": 4, "REMAT_POLICY": "full"}


def test_more_microbatches_than_rows_of_a_device_are_not_tried():
    tried = [change.get("MICROBATCHES", 1) for change, _ in candidates(spec_of(rows=32), MESH)]
    assert max(tried) == 4  # 32 rows over 8 devices


def test_there_are_no_candidates_if_every_value_is_at_its_limit():
    mesh = {**MESH, "data": 1, "fsdp": 32}
    assert list(candidates(spec_of(remat_policy="full"), mesh)) == []


def test_a_refused_mesh_is_a_trial_and_the_search_continues():
    def compile_one(spec):
        if spec.mesh.data == 1:
            raise UserError("mesh axis fsdp of size 8 does not divide dimension 0")
        return outcome(spec.microbatches == 2)

    found, trials = smallest_change(spec_of(), MESH, compile_one)
    assert trials[0].outcome is None and "does not divide" in trials[0].refusal
    assert found.changes == {"MICROBATCHES": 2}


def test_the_number_of_trials_is_limited():
    compile_one, asked = compiler(lambda s: False)
    found, trials = smallest_change(spec_of(), MESH, compile_one, max_trials=3)
    assert found is None and len(asked) == len(trials) == 3


def test_a_changed_configuration_reaches_every_network():
    objective = replace_configs(spec_of().objective, remat_policy="none", logits_chunk_size=7)
    assert objective.policy.config.remat_policy == objective.value.config.remat_policy == "none"
    assert objective.policy.logits_chunk_size == 7
    assert objective.temperature == spec_of().objective.temperature


def test_an_unchanged_objective_is_the_same_object():
    objective = spec_of().objective
    assert replace_configs(objective, remat_policy="minimal") is objective


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(MeshShape)])
def test_a_mesh_change_keeps_the_other_axes(field):
    _, changed = next(iter(candidates(spec_of(), MESH)))
    expected = {"slice": None, "data": 1, "fsdp": 8, "tensor": None}
    assert getattr(changed.mesh, field) == expected[field]


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.",
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G).",
    ],
)
def test_sizes_are_read_from_the_compilers_refusal(message):
    assert refused_bytes(message) == (int(20.5 * 2**30), int(15.75 * 2**30))


def test_a_refusal_without_sizes_is_still_a_refusal():
    assert refused_bytes("RESOURCE_EXHAUSTED: too large") == (None, None)
