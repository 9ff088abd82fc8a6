"""T5X's own checkpoints are read bit for bit; what an index may refer to is narrow."""

import copy
import json
from pathlib import Path

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxalign.errors import UserError
from jaxalign.interop import parameters, t5x
from jaxalign.interop.checkpoint_sources import open_source
from jaxalign.interop.convert import convert
from tests.interop.conftest import CONFIG

READERS = {"legacy": t5x.read_legacy, "orbax": t5x.read_orbax}
NAME = "encoder.encoder_norm.scale"


@pytest.mark.parametrize("layout", READERS)
def test_a_state_written_by_t5x(shared_dir, layout):
    folder = shared_dir / "goldens" / "t5x_checkpoints"
    with np.load(folder / "expected.npz", allow_pickle=False) as archive:
        expected = {
            name.removeprefix("target."): archive[name]
            for name in archive.files
            if name.startswith("target.")
        }
    source = open_source(folder / layout)
    assert source.step == 1
    assert source.left_out == ["264 arrays of the optimizer"]
    assert source.params.keys() == expected.keys()
    for name, values in expected.items():
        assert source.params[name].dtype == values.dtype
        np.testing.assert_array_equal(source.params[name].read(), values, err_msg=name)
    dims = json.loads((folder.parent / "t5x" / "config.json").read_text())["dims"]
    config, assumed = source.configured(None)
    assert {name: getattr(config, name) for name in dims} == dims
    assert "activations gelu-linear" in assumed


def test_what_t5x_wrote_is_written_as_t5x_writes_it(shared_dir, tmp_path):
    golden = shared_dir / "goldens" / "t5x_checkpoints" / "legacy" / "checkpoint_1"
    written = tmp_path / "checkpoint_1"
    convert(checkpoint=str(golden), output=str(written), to="t5x")
    indices = [
        flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
        for folder in (golden, written)
    ]
    assert indices[0]["version"] == indices[1]["version"]
    assert indices[0]["optimizer"]["target"] == indices[1]["optimizer"]["target"]
    step = [index["optimizer"]["state"]["step"] for index in indices]
    assert step[0] == step[1] and step[0].dtype == step[1].dtype
    name = "target.encoder.layers_1.mlp.wi_0.kernel/.zarray"
    assert json.loads((golden / name).read_text()) == json.loads((written / name).read_text())


def test_orbax_restores_what_is_written_for_it(values, make_checkpoint):
    expected = values()
    folder = make_checkpoint("t5x_orbax", expected)
    restored = ocp.PyTreeCheckpointer().restore(f"{folder}/state")
    assert restored["state"]["step"] == 7
    found = parameters.flatten(restored["target"])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture
def index(values, make_checkpoint):
    """A legacy checkpoint's folder, its index, and a function that writes the index back."""
    folder = make_checkpoint("t5x", values())
    path = f"{folder}/checkpoint"
    with open(path, "rb") as file:
        content = flax.serialization.msgpack_restore(file.read())

    def rewrite(content):
        with open(path, "wb") as file:
            file.write(flax.serialization.msgpack_serialize(content))

    return folder, content, rewrite


def spec_of(content):
    return content["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"]


def store(**changes):
    return {"kvstore": {"driver": "file", "path": "target.encoder.encoder_norm.scale/"} | changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (store(path="../other/"), "not beside the index"),
        (store(path="/etc/passwd"), "not beside the index"),
        (store(path="a/b"), "not beside the index"),
        (store(path=".."), "not beside the index"),
        (store(path=3), "not beside the index"),
        (store(driver="http"), "'http'"),
        (store(base={"driver": "file", "path": "/"}), "not read"),
        ({"driver": "n5"}, "driver 'n5'"),
        ({"driver": "cast", "base": {}}, "not followed"),
        ({"open": True}, "not followed"),
        ({"metadata": {"shape": [9]}}, r"shape \[9\]"),
        ({"dtype": "bfloat16"}, "bfloat16, its array is float32"),
        ({"transform": {"input_inclusive_min": [0], "input_exclusive_max": [4]}}, "a view"),
        ({"transform": {"output": [{"constant": 1}]}}, "a view"),
    ],
)
def test_references_to_anything_but_arrays_beside_the_index_are_refused(index, change, message):
    folder, content, rewrite = index
    spec_of(content).update(change)
    rewrite(content)
    with pytest.raises(UserError, match=message):
        t5x.read_legacy(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"kvstore": {"driver": "gfile", "path": "target.encoder.encoder_norm.scale"}},
        {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": f"target.{NAME}"},
        {"transform": {"input_inclusive_min": [0], "input_exclusive_max": [[8]]}},
    ],
    ids=["gfile", "before tensorstore 0.1.14", "identity"],
)
def test_the_ways_in_which_t5x_has_written_references_are_read(index, values, change):
    folder, content, rewrite = index
    spec_of(content).update(change)
    rewrite(content)
    np.testing.assert_array_equal(t5x.read_legacy(folder)[0][NAME].read(), values()[NAME])


def test_arrays_inside_the_index_are_read(index, values):
    folder, content, rewrite = index
    expected = values()
    content["optimizer"]["target"] = parameters.nest(expected)
    rewrite(content)
    params = open_source(folder).params
    assert params.keys() == expected.keys()
    for name, array in params.items():
        np.testing.assert_array_equal(array.read(), expected[name])


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"", b"\xc1", b"model_checkpoint_path"])
def test_an_index_that_is_no_msgpack_is_refused(tmp_path, content):
    (tmp_path / "checkpoint_1").mkdir()
    (tmp_path / "checkpoint_1" / "checkpoint").write_bytes(content)
    with pytest.raises(UserError, match="T5X checkpoint"):
        open_source(tmp_path)


@pytest.mark.parametrize("value", [np.zeros(8, np.int8), "text", 3])
def test_parameters_that_are_no_arrays_of_numbers_are_refused(index, value):
    folder, content, rewrite = index
    content["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"] = value
    rewrite(content)
    with pytest.raises(UserError, match=r"encoder_norm\.scale is neither"):
        t5x.read_legacy(folder)


def test_old_versions_are_refused(index):
    folder, content, rewrite = index
    rewrite(content | {"version": 1})
    with pytest.raises(UserError, match="version 2 or 3"):
        t5x.read_legacy(folder)


def scanned(values, nesting="{stack}.{stack}"):
    """The parameters with layers stacked along axis 1 and named as in T5X's scalable T5."""
    flat = {name: value for name, value in values.items() if ".layers_" not in name}
    for stack, count in (("encoder", 2), ("decoder", 3)):
        prefix = f"{stack}.layers_0."
        for name in [name for name in values if name.startswith(prefix)]:
            rest = name.removeprefix(prefix)
            parts = [values[f"{stack}.layers_{i}.{rest}"] for i in range(count)]
            flat[f"{nesting.format(stack=stack)}.{rest}"] = np.stack(parts, 1)
    return flat


@pytest.mark.parametrize("nesting", ["{stack}.{stack}", "{stack}.layers"])
@pytest.mark.parametrize("table", [None, "relpos_bias", "relative_posemb"])
def test_scanned_trees_are_read_layer_by_layer(index, values, nesting, table):
    folder, content, rewrite = index
    expected = values(CONFIG.replace(relative_attention_per_layer=table is not None))
    flat = scanned(expected, nesting)
    if table is not None:  # umT5, under the name of the public checkpoints and that of T5X's source
        flat = {name.replace("relpos_bias", table): value for name, value in flat.items()}
    content["optimizer"]["target"] = parameters.nest(flat)
    rewrite(content)
    source = open_source(folder)
    source.configured(None)
    for name, value in expected.items():
        np.testing.assert_array_equal(source.params[name].read(), value, err_msg=name)


def test_relative_positions_in_every_layer_are_not_written_for_t5x(
    values, make_checkpoint, tmp_path
):
    config = CONFIG.replace(relative_attention_per_layer=True)
    run = make_checkpoint("jaxalign", values(config), config)
    with pytest.raises(UserError, match="umT5"):
        convert(checkpoint=run, output=str(tmp_path / "out"), to="t5x")


def test_a_step_is_chosen_among_finished_checkpoints(index, tmp_path):
    folder, _, _ = index
    parent = tmp_path / "source-t5x"
    (parent / "checkpoint_9.tmp-1234").mkdir()
    assert open_source(parent).step == 7
    assert open_source(parent, 7).path == folder
    with pytest.raises(UserError, match=r"no T5X checkpoint of step 8; there are \[7\]"):
        open_source(parent, 8)
    with pytest.raises(UserError, match="only one of step 7"):
        open_source(folder, 8)


def test_a_missing_array_is_named(index):
    folder, content, rewrite = index
    broken = copy.deepcopy(content)
    spec_of(broken)["kvstore"]["path"] = "target.elsewhere/"
    rewrite(broken)
    with pytest.raises(UserError, match=r"encoder_norm\.scale cannot be opened"):
        t5x.read_legacy(folder)


def test_a_missing_chunk_is_no_block_of_zeros(values, make_checkpoint):
    """As an interrupted copy leaves it: the array's description is there, a part of its content is not."""
    folder = Path(make_checkpoint("t5x", values()))
    chunk = min(folder.glob("*.mlp.wi_0.kernel/0.0"))
    chunk.unlink()
    name = chunk.parent.name.removeprefix("target.")
    with pytest.raises(UserError, match="missing"):
        open_source(str(folder)).params[name].read()
