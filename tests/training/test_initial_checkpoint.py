"""A run may start from any checkpoint: its parameters arrive on the run's mesh as if they had been made there."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.annotation.score import reference_name, score
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.data.vocabularies import ByteVocabulary, SentencePieceVocabulary
from jaxalign.errors import UserError
from jaxalign.interop import parameters, t5x
from jaxalign.interop.arrays import from_numpy
from jaxalign.interop.convert import convert
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import stack_layers
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.sft import SFT
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.devices import Placement
from jaxalign.parallel.partitioning import MeshShape, role_shardings
from jaxalign.training.initial_checkpoint import check, open_checkpoint
from jaxalign.training.launch import Launch
from jaxalign.training.start import Start, StartFrom

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
)


@pytest.fixture(scope="module")
def params():
    generator = np.random.default_rng(0)
    shapes = parameters.shapes(CONFIG)
    return parameters.nest(
        {name: generator.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    )


@pytest.fixture(scope="module")
def folders(params, tmp_path_factory):
    """The same parameters as a T5X checkpoint, a Hugging Face folder and run folders in either layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    first = root / "t5x" / "checkpoint_3"
    first.mkdir(parents=True)
    t5x.write_legacy(
        str(first), {n: from_numpy(v) for n, v in parameters.flatten(params).items()}, 3
    )
    for name, options in {
        "t5x_orbax": {"to": "t5x_orbax"},
        "huggingface": {"to": "huggingface"},
        "unrolled": {},
        "scanned": {"scan_layers": True},
    }.items():
        convert(checkpoint=str(first), output=str(root / name), **options)
    return root


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("name", ["t5x", "t5x_orbax", "huggingface", "unrolled", "scanned"])
def test_every_format_arrives_on_the_mesh(folders, params, name, scan):
    policy = Policy(CONFIG.replace(scan_layers=scan))
    mesh = partitioning.make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    initial = open_checkpoint(str(folders / name))
    assert initial.identity["step"] == (0 if name == "huggingface" else 3)
    restored = initial.restore(policy, mesh)
    expected = stack_layers(params) if scan else params
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    places = role_shardings(mesh, policy.abstract_params(), policy.logical_axes())
    jax.tree.map(
        lambda leaf, place: (
            leaf.sharding.is_equivalent_to(place, leaf.ndim) or pytest.fail(str(place))
        ),
        restored,
        places,
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(restored))


def test_a_converted_run_has_the_references_name_of_what_it_was_converted_from(folders):
    policy = Policy(CONFIG)
    names = {
        reference_name(open_checkpoint(str(folders / name)).identity, policy)
        for name in ("t5x", "unrolled", "scanned")
    }
    assert len(names) == 1


def test_the_first_process_chooses_the_checkpoint(folders, tmp_path, monkeypatch):
    """Here another process has seen step 3 alone, and this one sees step 9 as well."""
    shutil.copytree(folders / "t5x", tmp_path / "t5x")
    shutil.copytree(folders / "t5x" / "checkpoint_3", tmp_path / "t5x" / "checkpoint_9")
    assert open_checkpoint(str(tmp_path / "t5x")).identity["step"] == 9
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    there = str(tmp_path / "t5x")
    monkeypatch.setattr(
        distributed, "broadcast_from_first", lambda decide: min(decide(), [there, 3])
    )
    assert open_checkpoint(str(tmp_path / "t5x")).identity["step"] == 3


def test_another_model_is_refused(folders):
    mesh = partitioning.make_mesh()
    for name, message in (
        ("t5x", r"wi_0\.kernel"),
        ("huggingface", "mlp_activations"),
    ):
        policy = Policy(CONFIG.replace(mlp_activations=("relu",)))
        with pytest.raises(UserError, match=message):
            open_checkpoint(str(folders / name)).restore(policy, mesh)
        with pytest.raises(UserError, match=message):
            check(folders / name, None, policy)
        check(folders / name, None, Policy(CONFIG))
    with pytest.raises(UserError, match="no checkpoint at"):
        check(folders / "t5x" / "nowhere", None, Policy(CONFIG))
    with pytest.raises(UserError, match="no checkpoint of step 4"):
        open_checkpoint(str(folders / "huggingface"), 4)


def test_a_converted_run_says_where_it_is_from_and_has_no_method_to_continue(folders):
    description = json.loads((folders / "scanned" / "networks.json").read_text())
    assert description["objective"] == "converted"
    assert description["converted_from"]["format"] == "t5x"


def begin(objective, path, *, seed=0, earlier=None, vocabulary=None):
    launch = Launch(Path("run"), "new", earlier or {}, vocabulary, None)
    placement = Placement(partitioning.make_mesh(), {}, None, 1)
    return Start(launch, objective, placement, seed, StartFrom(path and str(path)))


def test_a_run_that_goes_on_needs_its_start_only_for_a_copy_of_it(folders, tmp_path, capsys):
    identity = open_checkpoint(str(folders / "t5x")).identity
    gone, earlier = tmp_path / "gone", {"initial_checkpoint": identity}
    with pytest.raises(UserError, match="gone"):
        begin(DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG)), gone)
    start = begin(DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG)), gone, earlier=earlier)
    assert start.frozen() == {} and start.identity == identity
    start.warn_of_unreadable_checkpoint()
    assert "is no longer needed: " in capsys.readouterr().err
    with pytest.raises(UserError, match="gone"):
        start.trained()
    live = DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG), reference="live")
    with pytest.raises(UserError, match="gone"):
        begin(live, gone, earlier=earlier).frozen()


def test_a_run_goes_on_from_the_start_that_it_had(folders):
    objective = DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG))
    earlier = {"initial_checkpoint": {"run_id": "another", "step": 3, "path": "runs/another"}}
    with pytest.raises(
        UserError, match=r"began with the initial checkpoint runs/another \(another"
    ):
        begin(objective, folders / "t5x", earlier=earlier)


def test_a_run_is_not_continued_with_another_kind_of_start(folders):
    objective = DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG))
    earlier = {"run_id": "r", "initial_checkpoint": open_checkpoint(str(folders / "t5x")).identity}
    with pytest.raises(UserError, match=r"began from .*t5x.*: give INITIAL_CHECKPOINT_PATH again"):
        begin(objective, None, earlier=earlier)
    with pytest.raises(
        UserError, match=r"with random parameters.*leave INITIAL_CHECKPOINT_PATH out"
    ):
        begin(objective, folders / "t5x", earlier={"run_id": "r"})
    assert begin(objective, None, earlier={"run_id": "r"}).identity["run_id"] == "new-init"


@pytest.mark.parametrize("name", ["t5x", "huggingface"])
def test_policy_and_value_start_from_it_and_the_values_head_is_made_anew(folders, params, name):
    objective = DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG))
    heads = []
    for seed in (0, 1):
        start = begin(objective, folders / name, seed=seed)
        started = start.trained()
        jax.tree.map(np.testing.assert_array_equal, started["policy"], params)
        jax.tree.map(np.testing.assert_array_equal, started["value"]["encoder"], params["encoder"])
        assert start.identity == open_checkpoint(str(folders / name)).identity
        heads.append(np.asarray(started["value"]["head"]["kernel"]))
    assert not np.array_equal(*heads)


def test_scoring_asks_for_the_lengths_that_a_converted_checkpoint_does_not_know(folders):
    with pytest.raises(UserError, match="records no length of its inputs; give --max_input_length"):
        score(checkpoint=str(folders / "unrolled"), cache_dir="unread")


@pytest.mark.parametrize("to", ["jaxalign", "huggingface"])
def test_a_task_with_another_vocabulary_than_the_starts_is_refused(folders, tmp_path, to):
    model = str(tmp_path / "my.model")
    theirs = train_sentencepiece(["a b c d e f g h", "b c d e"] * 5, model, vocab_size=20)
    other = train_sentencepiece(
        ["i j k l m n", "j k"] * 5, str(tmp_path / "o.model"), vocab_size=18
    )
    start = convert(
        checkpoint=str(folders / "t5x"),
        output=str(tmp_path / "start"),
        to=to,
        vocabulary=model,
        extra_ids=4,
    )["output"]
    objective = DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG))

    def of_task(vocabulary):
        return RecordedVocabulary(vocabulary.to_dict(), "runs/cache")

    begin(objective, start, vocabulary=of_task(SentencePieceVocabulary(model, 4)))
    for vocabulary in (other, ByteVocabulary(), theirs):
        with pytest.raises(
            UserError,
            match=r"runs/cache was tokenised with another vocabulary than the initial checkpoint.* and EXTRA_IDS = 4",
        ):
            begin(objective, start, vocabulary=of_task(vocabulary))
    # T5X's say nothing of theirs.
    begin(objective, folders / "t5x", vocabulary=of_task(other))


def test_steps_are_explained_to_whoever_comes_from_t5x(folders, capsys):
    objective = SFT(policy=Policy(CONFIG))
    begin(objective, folders / "t5x").warn_of_t5x_steps(2)
    assert "T5X would count from the checkpoint's step 3 and need TRAIN_STEPS = 5" in (
        capsys.readouterr().err
    )
    begin(objective, folders / "t5x_orbax").warn_of_t5x_steps(10)
    assert "for as many, set TRAIN_STEPS = 7" in capsys.readouterr().err
    for name in ("huggingface", "unrolled"):
        begin(objective, folders / name).warn_of_t5x_steps(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["t5x", "huggingface", "scanned"])
def test_a_network_with_more_parts_than_its_start_gets_random_ones(folders, params, name, capsys):
    policy = Policy(CONFIG.replace(encoder_fusion="gated"))
    objective = SFT(policy=policy)
    check(folders / name, None, policy)
    start = begin(objective, folders / name)
    assert "has no encoder_fusion: these parts of the policy begin with random parameters" in (
        capsys.readouterr().err
    )
    found, expected = (parameters.flatten(tree) for tree in (start.trained()["policy"], params))
    assert all(np.array_equal(found.pop(path), leaf) for path, leaf in expected.items())
    fresh = parameters.flatten(policy.init(start._keys["policy"]))
    assert len(found) == len(fresh) - len(expected) == 2 + 2 * 7
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, fresh[path], rtol=1e-6)
    # As a reference it is not the checkpoint's policy.
    plain = begin(SFT(policy=Policy(CONFIG)), folders / name).identity
    assert start.identity["run_id"] == f"{plain['run_id']}-encoder_fusion-0"
    reference_name(start.identity, policy)
