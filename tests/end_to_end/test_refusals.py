"""Runs that cannot work stop with a sentence before anything is computed; a run that dies starts afresh."""

import functools
import json
from types import SimpleNamespace

import pytest

from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.dro import DROP
from jaxalign.objectives.responses import Pairwise
from jaxalign.objectives.sft import SFT
from jaxalign.parallel.devices import Devices
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.runs import describing
from jaxalign.training import launch as earlier_runs
from jaxalign.training import run as training
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import sgd
from jaxalign.training.start import StartFrom

DPO = functools.partial(dpo_loss, beta=0.1)


@pytest.fixture(scope="module")
def launch(feedback, tmp_path_factory):
    cache = tmp_path_factory.mktemp("refusals") / "cache"

    def start(folder, objective=SFT, vocab_size=272, **options):
        sizes = dict.fromkeys(("emb_dim", "num_heads", "head_dim", "mlp_dim"), 8)
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
        policy = Policy(T5Config(vocab_size=vocab_size, **sizes, **layers))
        return training.train(
            model_dir=str(folder),
            objective=objective(policy=policy),
            data=TaskData(
                task="tiny",
                cache_dir=str(cache),
                feature_lengths={"inputs": 16, "targets": 16},
                train_file=str(feedback),
            ),
            optimizers={"policy": sgd(1e-2)},
            loop=LoopConfig(train_steps=1, progress=False),
            **({"batch_size": 8} | options),
        )

    return start


def test_a_vocabulary_larger_than_the_model_is_refused(launch, tmp_path):
    with pytest.raises(
        UserError, match=r"has \d+ tokens, but the model's vocab_size is 64; set VOCAB_SIZE"
    ):
        launch(tmp_path, vocab_size=64)


def test_a_mesh_that_does_not_divide_the_model_is_refused(launch, tmp_path):
    with pytest.raises(UserError, match=r"mesh axis tensor of size 8 does not divide .*270"):
        launch(tmp_path, vocab_size=270, devices=Devices(mesh=MeshShape(tensor=8)))


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(launch, tmp_path):
    with pytest.raises(UserError, match="batch size 6 is not a multiple"):
        launch(tmp_path, batch_size=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "train.batch_size is 0; it must be at least 1"),
        ({"random_seed": -1}, "train.random_seed is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(launch, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        launch(tmp_path, **options)


@pytest.mark.parametrize(
    ("folder", "message"), [("", "MODEL_DIR is empty"), ("gs://bucket/run", "mount the bucket")]
)
def test_a_folder_that_is_none_is_refused(launch, folder, message):
    with pytest.raises(UserError, match=message):
        launch(folder)


def test_a_checkpoint_that_is_not_there_is_reported(launch, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*nowhere"):
        launch(tmp_path / "run", start_from=StartFrom(str(tmp_path / "nowhere")))


def test_an_objective_that_the_task_cannot_feed_is_refused(launch, tmp_path):
    mine, new = tmp_path / "mine", tmp_path / "new" / "run"
    mine.mkdir()
    for folder in (mine, new):
        with pytest.raises(UserError, match=r"objective dpo needs 2 response\(s\) per prompt"):
            launch(
                folder,
                objective=functools.partial(Pairwise, loss_function=DPO),
                reference_scores=None,
            )
    # A refused run leaves no folder behind, and removes none that was there.
    assert list(tmp_path.iterdir()) == [mine]
    assert list(mine.iterdir()) == []


def test_a_folder_without_checkpoint_gets_a_new_run_id(tmp_path):
    """Or scores of the parameters of a run that died would be taken for those of another."""
    (tmp_path / "networks.json").write_text(json.dumps({"run_id": "old", "networks": {}}))
    assert earlier_runs.earlier_launch(tmp_path) == {}
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    assert earlier_runs.earlier_launch(tmp_path)["run_id"] == "old"


def test_another_method_does_not_continue_a_run_and_a_finished_run_is_left_alone(launch, tmp_path):
    """Or the checkpoints of one method would be taken for those of another, and a second launch would forget what the first one did."""
    folder = tmp_path / "run"
    first = launch(folder, batch_size=8)
    written = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert launch(folder, batch_size=8) == json.loads(json.dumps(first))
    assert written == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(
        UserError, match="holds a run with objective sft, and this command says dro_p"
    ):
        launch(folder, batch_size=8, objective=DROP)


def test_other_hyperparameters_do_not_continue_a_run(tmp_path):
    sizes = dict.fromkeys(("emb_dim", "num_heads", "head_dim", "mlp_dim"), 8)
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    policy = Policy(T5Config(vocab_size=64, **sizes, **layers))
    earlier, same, other = (
        Pairwise(policy=policy, loss_function=functools.partial(dpo_loss, beta=beta))
        for beta in (0.1, 0.1, 0.2)
    )
    written = json.loads(json.dumps(describing.describe_method(earlier)))
    earlier_runs.check_same_method(tmp_path, written, same)
    live = Pairwise(policy=policy, loss_function=DPO, reference="live")
    earlier_runs.check_same_method(tmp_path, written, live)
    with pytest.raises(UserError, match=r"a run with beta 0\.1, and this command says 0\.2"):
        earlier_runs.check_same_method(tmp_path, written, other)
    # A run of a version that had another hyperparameter.
    older = written | {"hyperparameters": {**written["hyperparameters"], "warmup_steps": 3}}
    with pytest.raises(UserError, match=r"a run with warmup_steps 3, and this command says None"):
        earlier_runs.check_same_method(tmp_path, older, same)
    # A run of before; its `beta` is something else.
    written = {"objective": "dpo", "beta": {"mean": 0.0}}
    earlier_runs.check_same_method(tmp_path, written, other)


def test_other_examples_do_not_continue_a_run(tmp_path):
    metadata = SimpleNamespace(fingerprint="new")
    data = SimpleNamespace(cache_dir="cache", task="mine")
    check = functools.partial(earlier_runs.check_same_task, tmp_path, data=data, metadata=metadata)
    check({})
    check({"task": "mine", "task_fingerprint": "new"})
    with pytest.raises(UserError, match=r"the task 'other' with other examples than cache"):
        check({"task": "other", "task_fingerprint": "old"})
