"""An objective inside T5X's trainer, tried in a stand-in of T5X's model, which is not installed here."""

import dataclasses
import functools
import importlib
import sys
import types

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.batches import make_batch
from jaxalign.data.examples import CachedExample
from jaxalign.errors import UserError
from jaxalign.losses import pairwise
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROP, DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.responses import Pairwise
from jaxalign.objectives.sft import SFT

CONFIG = T5Config(
    vocab_size=40,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=1,
)
ROWS, LENGTHS = 4, (7, 6)


class StandIn:
    """What of T5X's EncoderDecoderModel is used: its constructor and its initial variables."""

    def __init__(
        self,
        module,
        input_vocabulary,
        output_vocabulary,
        optimizer_def,
        feature_converter_cls=None,
        decode_fn=None,
    ):
        self.module, self.optimizer_def = module, optimizer_def
        self.FEATURE_CONVERTER_CLS = feature_converter_cls

    def get_initial_variables(self, rng, input_shapes, input_types=None):
        return flax.core.freeze(self.module.init(rng))


@dataclasses.dataclass
class Module:
    """T5X's network, whose tree is that of ours."""

    config: T5Config = CONFIG

    def init(self, rng):
        return {"params": Policy(self.config).init(rng), "params_axes": {"decoder": {}}}


@pytest.fixture(scope="module")
def t5x_model():
    """The module, imported with a stand-in for T5X."""
    names = {"t5x": types.ModuleType("t5x"), "t5x.models": types.ModuleType("t5x.models")}
    names["t5x"].models = names["t5x.models"]
    names["t5x.models"].EncoderDecoderModel = StandIn
    with pytest.MonkeyPatch.context() as patch:
        for name, module in names.items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module("jaxalign.interop.t5x_model")
        sys.modules.pop("jaxalign.interop.t5x_model")


def model_of(t5x_model, objective, **options):
    return t5x_model.ObjectiveModel(Module(), None, None, None, objective, ROWS, **options)


@pytest.fixture(scope="module")
def batches():
    """The same examples as a batch of T5X's and as one of ours."""
    generator = np.random.default_rng(0)
    examples, theirs = [], {}
    for _ in range(ROWS):
        inputs = [*generator.integers(3, 40, generator.integers(1, 6)).tolist(), 1]
        targets = [*generator.integers(3, 40, generator.integers(1, 5)).tolist(), 1]
        examples.append((inputs, targets, float(generator.normal())))
    reference = generator.normal(size=(ROWS, 1)).astype(np.float32) - 20
    cached = [
        CachedExample(
            prompt_id=i + 1,
            inputs=np.asarray(inputs, np.int32),
            targets=np.asarray(targets, np.int32),
            target_lengths=np.asarray([len(targets)], np.int32),
            feedback=np.asarray([reward], np.float32),
            scores=None,
        )
        for i, (inputs, targets, reward) in enumerate(examples)
    ]
    ours = make_batch(
        [[(i, example)] for i, example in enumerate(cached)],
        num_rows=ROWS,
        input_length=LENGTHS[0],
        target_length=LENGTHS[1],
        examples_per_row=1,
        responses_per_example=1,
        reference_log_probs=reference,
    )

    def padded(tokens, length):
        return np.pad(np.asarray(tokens, np.int32), (0, length - len(tokens)))

    targets = np.stack([padded(e[1], LENGTHS[1]) for e in examples])
    theirs = {
        "encoder_input_tokens": np.stack([padded(e[0], LENGTHS[0]) for e in examples]),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_loss_weights": (targets > 0).astype(np.int32),
        "rewards": np.asarray([e[2] for e in examples], np.float32),
        "reference_log_probs": reference[:, 0],
    }
    return theirs, ours


def objectives():
    policy = Policy(CONFIG)
    return {
        "dro_p": DROP(policy=policy, rescale="none", temperature=0.5),
        "dro_v": DROV(policy=policy, value=ValueNetwork(CONFIG), rescale="none", temperature=0.5),
    }


@pytest.mark.parametrize("name", ["dro_p", "dro_v"])
def test_gradients_are_those_of_our_own_step(t5x_model, batches, name):
    theirs, ours = batches
    objective = objectives()[name]
    model = model_of(t5x_model, objective)
    params = model.get_initial_variables(jax.random.key(0), {})["params"]

    def own(params):
        roles = t5x_model.by_role(params)
        output = objective.loss(roles, objective.prepare(roles, ours), None)
        return output.loss_sum / output.weight

    key = jax.random.key(1)
    (loss, metrics), found = jax.value_and_grad(model.loss_fn, has_aux=True)(params, theirs, key)
    expected_loss, expected = jax.value_and_grad(own)(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )
    assert float(metrics["reward"].count) == ROWS
    np.testing.assert_allclose(metrics["reward"].compute(), theirs["rewards"].mean(), rtol=1e-5)


def test_microbatches_add_up_and_those_of_dro_p_are_refused(t5x_model, batches):
    theirs, _ = batches
    key = jax.random.key(1)
    parts = [{n: values[i : i + 2] for n, values in theirs.items()} for i in (0, 2)]
    for name, objective in objectives().items():
        model = model_of(t5x_model, objective)
        params = model.get_initial_variables(jax.random.key(0), {})["params"]
        whole, _ = model.loss_fn(params, theirs, key)
        if name == "dro_v":
            added = sum(model.loss_fn(params, part, key)[0] for part in parts)
            np.testing.assert_allclose(added, whole, rtol=1e-5)
            continue
        with pytest.raises(UserError, match=r"whole batch of 4 rows, and this microbatch has 2"):
            model.loss_fn(params, parts[0], key)
        model.loss_fn(params, parts[0], None)  # evaluation has batches of its own


def test_a_value_network_is_beside_the_policy_with_names_for_its_axes(t5x_model):
    model = model_of(t5x_model, objectives()["dro_v"])
    variables = model.get_initial_variables(jax.random.key(0), {})
    params, axes = variables["params"], variables["params_axes"]
    assert {"token_embedder", "encoder", "decoder", "value"} == set(params)
    assert axes["value"]["token_embedder"]["embedding_axes"].names == ("vocab", "embed")
    head = axes["value"]["head"]["kernel_axes"].names
    assert len(head) == params["value"]["head"]["kernel"].ndim
    # Of every parameter, in both trees.
    count = len(jax.tree.leaves(params["value"]))
    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(axes["value"]))
    assert len(flat) == count
    assert all(None not in leaf.names for leaf in flat.values())
    without = model_of(t5x_model, objectives()["dro_p"])
    assert "value" not in without.get_initial_variables(jax.random.key(0), {})["params"]


def test_what_t5x_cannot_run_is_refused(t5x_model):
    policy = Policy(CONFIG)
    live = DROP(policy=policy, rescale="none", reference="live")
    for objective, message in (
        (SFT(policy=policy), "T5X's own loss"),
        (KTO(policy=policy), "other networks in memory"),
        (
            Pairwise(policy=policy, loss_function=functools.partial(pairwise.dpo_loss, beta=0.1)),
            "compares the responses",
        ),
        (DROP(policy=policy, temperature=0.5), "set RESCALE = 'none'"),
        (live, "other networks in memory"),
    ):
        with pytest.raises(UserError, match=message):
            model_of(t5x_model, objective)
    fused = DROP(policy=Policy(CONFIG.replace(encoder_fusion="gated")), rescale="none")
    with pytest.raises(UserError, match="policy has encoder_fusion 'gated'"):
        model_of(t5x_model, fused)
    other = Module(CONFIG.replace(num_heads=4, head_dim=2))
    with pytest.raises(UserError, match="policy has num_heads 2, and T5X's module 4"):
        t5x_model.ObjectiveModel(other, None, None, None, objectives()["dro_p"], ROWS)


def test_packed_batches_and_missing_features_are_refused(t5x_model, batches):
    theirs, _ = batches
    model = model_of(t5x_model, objectives()["dro_p"])
    params = model.get_initial_variables(jax.random.key(0), {})["params"]
    packed = theirs | {"encoder_segment_ids": theirs["encoder_input_tokens"]}
    with pytest.raises(UserError, match="pack = False"):
        model.loss_fn(params, packed, None)
    without = {name: values for name, values in theirs.items() if name != "rewards"}
    with pytest.raises(UserError, match="lacks rewards"):
        model.loss_fn(params, without, None)


def test_seqios_converter_passes_one_number_an_example(t5x_model, batches):
    tf = pytest.importorskip("tensorflow")
    model = model_of(t5x_model, objectives()["dro_p"])
    converter = model.FEATURE_CONVERTER_CLS(pack=False, use_custom_packing_ops=False)
    element = {
        "inputs": tf.constant([5, 6, 1], tf.int32),
        "targets": tf.constant([7, 1], tf.int32),
        "rewards": tf.constant([0.5], tf.float32),
        "reference_log_probs": tf.constant([-3.0], tf.float32),
    }
    dataset = tf.data.Dataset.from_tensors(element)
    lengths = {"inputs": 7, "targets": 6, "rewards": 1, "reference_log_probs": 1}
    (converted,) = converter(dataset, lengths).batch(1).as_numpy_iterator()
    params = model.get_initial_variables(jax.random.key(0), {})["params"]
    loss, _ = model.loss_fn(params, {n: jnp.asarray(v) for n, v in converted.items()}, None)
    assert np.isfinite(loss)
