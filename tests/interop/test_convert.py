"""Every direction of `jaxalign convert` keeps every bit, and what cannot be kept is refused or said."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.interop import (
    arrays,
    checkpoint_sources,
    huggingface,
    huggingface_config,
    run_writer,
    safetensors,
    storage,
    zarr,
)
from jaxalign.interop.arrays import DTYPES
from jaxalign.interop.checkpoint_sources import (
    FORMATS,
    HUGGING_FACE,
    RUN,
    T5X,
    T5X_ORBAX,
    open_source,
)
from jaxalign.interop.convert import convert
from jaxalign.networks.config import T5Config
from jaxalign.runs.folder import Run

CONFIG = T5Config(
    vocab_size=40,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    mlp_dim=12,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
VERSIONS = {
    "1.1": CONFIG,
    "1.0": CONFIG.replace(mlp_activations=("relu",), logits_via_embedding=True),
}


def assert_equal(path, expected, config=None):
    source = open_source(path)
    source.configured(config)
    for name, values in expected.items():
        found = source.params[name].read()
        assert found.dtype == values.dtype, name
        np.testing.assert_array_equal(found, values, err_msg=name)


@pytest.mark.parametrize(("version", "dtype"), [("1.1", "float32"), ("1.0", "bfloat16")])
def test_every_format_into_every_format(values, make_checkpoint, tmp_path, version, dtype):
    config = VERSIONS[version]
    expected = values(config, dtype)
    kept = {name: value.astype(np.float32) for name, value in expected.items()}
    for first in FORMATS:
        path = make_checkpoint(first, expected, config, name=f"{first}-first")
        for second in FORMATS:
            output = tmp_path / f"{first}-{second}"
            result = convert(checkpoint=path, output=str(output), to=second)
            float32 = RUN in (first, second)
            assert_equal(result["output"], kept if float32 else expected, config)
            assert result["parameters"] == sum(value.size for value in expected.values())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_run_folder_in_either_layout_is_loaded_by_the_rest_of_jaxalign(
    values, make_checkpoint, tmp_path, axis
):
    expected = values()
    config = CONFIG.replace(scan_layers=True, param_scan_axis=axis)
    run = make_checkpoint(RUN, expected, config)
    trained = Run(run).policy()
    policy, params, info = trained.network, trained.params, trained.run.description
    assert policy.config == config
    assert trained.step == 7
    stacked = params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert stacked.dtype == np.float32
    wo = [expected[f"encoder.layers_{i}.mlp.wo.kernel"] for i in range(2)]
    np.testing.assert_array_equal(stacked, np.stack(wo, axis))
    convert(checkpoint=run, output=str(tmp_path / "unrolled"), scan_layers=False)
    trained = Run(tmp_path / "unrolled").policy()
    policy, params, again = trained.network, trained.params, trained.run.description
    assert not policy.config.scan_layers
    np.testing.assert_array_equal(params["encoder"]["layers_1"]["mlp"]["wo"]["kernel"], wo[1])
    assert again.run_id == info.run_id


def test_files_of_hugging_face_are_written_again_as_they_were(shared_dir, tmp_path):
    for version in ("t5_v1_1", "t5_v1_0", "umt5"):
        folder = shared_dir / "goldens" / "huggingface" / version
        convert(checkpoint=str(folder), output=str(tmp_path / version))
        convert(
            checkpoint=str(tmp_path / version),
            output=str(tmp_path / "hf" / version),
            to=HUGGING_FACE,
        )
        expected, _ = safetensors.read_folder(str(folder))
        found, _ = safetensors.read_folder(str(tmp_path / "hf" / version))
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name].read(), tensor.read(), err_msg=name)
        extra = found.keys() - expected.keys()
        assert extra <= {huggingface.HEAD}
        one = json.loads((folder / "config.json").read_text())
        other = json.loads((tmp_path / "hf" / version / "config.json").read_text())
        assert huggingface_config.config_from_huggingface(
            one
        ) == huggingface_config.config_from_huggingface(other)


@pytest.mark.parametrize("to", [T5X, T5X_ORBAX, HUGGING_FACE])
def test_rounding_is_asked_for_and_said(values, make_checkpoint, tmp_path, to):
    expected = values()
    run = make_checkpoint(RUN, expected)
    result = convert(checkpoint=run, output=str(tmp_path / "out"), to=to, dtype="bfloat16")
    assert "rounded to bfloat16" in result["message"]
    rounded = {name: value.astype(DTYPES["bfloat16"]) for name, value in expected.items()}
    assert_equal(result["output"], rounded)


@pytest.mark.parametrize("to", FORMATS)
def test_no_array_is_read_twice_and_a_stack_is_read_whole(
    values, make_checkpoint, tmp_path, monkeypatch, to
):
    config = CONFIG.replace(scan_layers=True)
    run = make_checkpoint(RUN, values(), config)
    reads = []
    real = zarr.open_arrays

    def counting(folder, specs):
        def counted(name, array):
            def read(index):
                reads.append(name)
                return array.reader(index)

            return arrays.LazyArray(array.shape, array.dtype, read)

        return {name: counted(name, array) for name, array in real(folder, specs).items()}

    monkeypatch.setattr(zarr, "open_arrays", counting)
    convert(checkpoint=run, output=str(tmp_path / "out"), to=to)
    assert len(reads) == len(set(reads)) == 29


@pytest.mark.parametrize("to", FORMATS)
def test_what_exists_is_not_overwritten_and_what_fails_leaves_nothing(
    values, make_checkpoint, tmp_path, to
):
    folder = make_checkpoint(T5X, values())
    first = convert(checkpoint=folder, output=str(tmp_path / "out"), to=to)["output"]
    before = sorted(storage.files(first))
    changed = values()
    changed["decoder.layers_2.mlp.wo.kernel"][0, 0] += 1e-6
    other = make_checkpoint(T5X, changed, name="other")
    with pytest.raises(UserError, match="exists already"):
        convert(checkpoint=other, output=str(tmp_path / "out"), to=to)
    assert sorted(storage.files(first)) == before
    # The last array's data is gone, which only reading it shows.
    os.remove(f"{folder}/target.token_embedder.embedding/0.0")
    with open(f"{folder}/target.token_embedder.embedding/0.0", "wb") as file:
        file.write(b"broken")
    with pytest.raises(UserError, match=r"token_embedder\.embedding cannot be read"):
        convert(checkpoint=folder, output=str(tmp_path / "fails" / "out"), to=to)
    left = [name for _, _, names in os.walk(tmp_path / "fails") for name in names]
    assert left == []


def test_tensors_without_a_place_and_missing_ones_are_named(values, make_checkpoint, tmp_path):
    for change in ("missing", "unknown", "shape"):
        changed = values()
        scale = changed.pop("decoder.layers_2.pre_mlp_layer_norm.scale")
        if change == "unknown":
            changed["decoder.layers_2.pre_mlp_layer_norm.scale"] = scale
            changed["value_head.kernel"] = scale
        if change == "shape":
            changed["decoder.layers_2.pre_mlp_layer_norm.scale"] = scale[:3]
        folder = make_checkpoint(T5X, changed, name=change)
        message = {
            "missing": r"lacks decoder\.layers_2\.pre_mlp_layer_norm\.scale",
            "unknown": r"has, unlike the model, value_head\.kernel",
            "shape": r"pre_mlp_layer_norm\.scale has shape \(3,\), the model expects \(8,\)",
        }[change]
        with pytest.raises(UserError, match=message):
            convert(checkpoint=folder, output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3, "head_dim": 2}, "has num_heads 2, and the model of this command 3"),
        ({"mlp_activations": ("silu", "linear")}, "mlp_activations"),
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
        ({"emb_dim": 16}, "emb_dim"),
    ],
)
def test_a_model_that_differs_from_config_json_is_refused(
    values, make_checkpoint, tmp_path, change, message
):
    folder = make_checkpoint(HUGGING_FACE, values())
    with pytest.raises(UserError, match=message):
        convert(checkpoint=folder, output=str(tmp_path / "out"), model=CONFIG.replace(**change))


def test_a_model_settles_what_t5x_does_not_say(values, make_checkpoint, tmp_path):
    folder = make_checkpoint(T5X, values())
    assert (
        "activations gelu-linear"
        in convert(checkpoint=folder, output=str(tmp_path / "a"))["assumed"]
    )
    silu = CONFIG.replace(mlp_activations=("silu", "linear"))
    result = convert(checkpoint=folder, output=str(tmp_path / "b"), model=silu)
    assert result["assumed"] == ""
    assert Run(tmp_path / "b").policy().network.config == silu
    with pytest.raises(UserError, match="rel_embedding has shape"):
        three = CONFIG.replace(num_heads=3, head_dim=2)
        convert(checkpoint=folder, output=str(tmp_path / "c"), model=three)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "flax_model.msgpack"])
def test_pickles_are_refused_with_a_way_out(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=r"can run code.*safe_serialization=True"):
            open_source(path)


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="no checkpoint at"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="only local paths and gs://"):
        open_source("s3://bucket/model")
    (tmp_path / "checkpoint").write_text("")
    (tmp_path / "model.ckpt-1000.index").write_text("")
    with pytest.raises(UserError, match="TensorFlow checkpoint"):
        open_source(tmp_path)


def test_tables_that_hugging_face_repeats_and_those_no_network_reads(
    values, make_checkpoint, tmp_path
):
    folder = make_checkpoint(HUGGING_FACE, values())
    tensors, _ = safetensors.read_folder(folder)
    table = tensors["shared.weight"]
    copies = {
        "encoder.embed_tokens.weight": table,
        huggingface.UNUSED: arrays.from_numpy(np.zeros((32, 2), np.float32)),
    }

    def variant(name, changed):
        path = tmp_path / name
        path.mkdir()
        shutil.copy(f"{folder}/config.json", path)
        safetensors.write_folder(str(path), changed, list(changed))
        return path

    source = open_source(variant("copies", tensors | copies))
    assert [text.partition(" ")[0] for text in source.left_out] == [
        huggingface.UNUSED,
        "encoder.embed_tokens.weight",
    ]
    np.testing.assert_array_equal(source.params["token_embedder.embedding"].read(), table.read())
    only = {name: tensor for name, tensor in tensors.items() if name != "shared.weight"} | copies
    np.testing.assert_array_equal(
        open_source(variant("only", only)).params["token_embedder.embedding"].read(), table.read()
    )
    other = {"encoder.embed_tokens.weight": arrays.from_numpy(table.read() + 1)}
    with pytest.raises(UserError, match=r"embed_tokens\.weight differs"):
        open_source(variant("other", tensors | other))


def test_a_checkpoint_keeps_its_identity_wherever_it_is_and_changes_it_with_its_content(
    values, make_checkpoint, tmp_path
):
    for to in (T5X, T5X_ORBAX, HUGGING_FACE):
        path = make_checkpoint(to, values(), name=f"{to}-one")
        copy = tmp_path / "copies" / to / "checkpoint_7"
        shutil.copytree(path, copy)
        assert open_source(copy).run_id() == open_source(path).run_id()
        changed = values()
        changed["decoder.layers_1.self_attention.value.kernel"][:, 0] += 1e-3
        other = make_checkpoint(to, changed, name=f"{to}-other")
        assert open_source(other).run_id() != open_source(path).run_id()


def test_vocabularies_are_copied(values, make_checkpoint, tmp_path, repository):
    expected = values(CONFIG.replace(vocab_size=512))
    config = CONFIG.replace(vocab_size=512)
    folder = make_checkpoint(T5X, expected, config)
    convert(checkpoint=folder, output=str(tmp_path / "bytes"), vocabulary="bytes", extra_ids=100)
    info = Run(tmp_path / "bytes").description
    assert info.vocabulary.to_json() == {"kind": "bytes", "extra_ids": 100}
    assert info.feature_lengths == {}
    from jaxalign.data.train_vocabulary import train_sentencepiece

    model = tmp_path / "my.model"
    train_sentencepiece(["a b c d e f g h", "b c d e"] * 5, str(model), vocab_size=20)
    lengths = {"max_input_length": 12, "max_target_length": 8}
    run = tmp_path / "pieces"
    convert(checkpoint=folder, output=str(run), vocabulary=str(model), **lengths)
    info = Run(run).description
    assert (run / "my.model").read_bytes() == model.read_bytes()
    assert Run(run).vocabulary.size <= 20
    assert info.feature_lengths == {"inputs": 12, "targets": 8}
    convert(checkpoint=str(run), output=str(tmp_path / "hf"), to=HUGGING_FACE)
    assert (tmp_path / "hf" / "spiece.model").read_bytes() == model.read_bytes()
    convert(checkpoint=str(tmp_path / "hf"), output=str(tmp_path / "again"))
    recorded = Run(tmp_path / "again").description.vocabulary
    assert (recorded.file, recorded.extra_ids) == ("spiece.model", 0)
    with pytest.raises(UserError, match=r"259 tokens .* 40 rows"):
        small = make_checkpoint(T5X, values(), name="small")
        convert(checkpoint=small, output=str(tmp_path / "no"), vocabulary="bytes")


def test_a_network_that_is_more_than_a_t5_stays_in_run_folders(values, make_checkpoint, tmp_path):
    config = CONFIG.replace(encoder_fusion="gated")
    expected = values(config)
    params = {name: arrays.from_numpy(value) for name, value in expected.items()}
    source = open_source(make_checkpoint(T5X, values()))
    source = dataclasses.replace(source, params=params, config=config)
    run = str(tmp_path / "fused")
    run_writer.write(run, params, 7, run_writer.describe(source, config, None, {}), None)
    scanned = convert(checkpoint=run, output=str(tmp_path / "scanned"), scan_layers=True)["output"]
    for path in (run, scanned):
        assert_equal(path, expected, config)
    for to in (T5X, T5X_ORBAX, HUGGING_FACE):
        with pytest.raises(UserError, match="fused has encoder_fusion 'gated', which the T5 of"):
            convert(checkpoint=run, output=str(tmp_path / to), to=to)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "gguf"}, "there are jaxalign, t5x"),
        ({"dtype": "float16"}, "float16 is refused"),
        ({"dtype": "bfloat16"}, "parameters are float32"),
        ({"to": T5X, "vocabulary": "bytes"}, "hold no vocabulary"),
        ({"to": HUGGING_FACE, "max_input_length": 8}, "for run folders"),
        ({"extra_ids": 100}, "give --vocabulary as well"),
        ({"output": "gs://bucket/run"}, "run folders are local"),
        ({"role": "value"}, "no run folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    values, make_checkpoint, tmp_path, options, message
):
    folder = make_checkpoint(T5X, values())
    with pytest.raises(UserError, match=message):
        convert(**{"checkpoint": folder, "output": str(tmp_path / "out")} | options)


def test_a_bucket_is_read_and_written_like_a_folder(values, make_checkpoint, tmp_path, bucket):
    assert storage.kvstore(str(tmp_path))["driver"] == "file"
    expected = values()
    shutil.copytree(make_checkpoint(T5X, expected), bucket / "t5x" / "checkpoint_7")
    shutil.copytree(make_checkpoint(HUGGING_FACE, expected, name="hf"), bucket / "hf")
    assert_equal("gs://bucket/t5x", expected)
    assert_equal("gs://bucket/hf/", expected)
    for to in (T5X, HUGGING_FACE):
        output = convert(checkpoint="gs://bucket/t5x", output=f"gs://bucket/out/{to}", to=to)[
            "output"
        ]
        assert_equal(output, expected)
        with pytest.raises(UserError, match="exists already"):
            convert(checkpoint="gs://bucket/hf", output=output, to=to)
    assert (
        checkpoint_sources.open_source("gs://bucket/t5x").run_id()
        == open_source(bucket / "t5x").run_id()
    )


def test_a_bucket_on_a_server_gives_and_takes_what_a_folder_does(
    values, make_checkpoint, tmp_path, repository
):
    """Through TensorStore's own driver and HTTP; no part of ours is replaced."""
    expected, root = values(), tmp_path / "served"
    for kind, place in (
        (T5X, "t5x/checkpoint_7"),
        ("t5x_orbax", "t5x_orbax/checkpoint_7"),
        (HUGGING_FACE, "huggingface"),
    ):
        shutil.copytree(make_checkpoint(kind, expected, name=kind), root / place)
    path = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, Path(__file__).with_name("bucket_client.py"), root, tmp_path]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    subprocess.run(command, env=environment, check=True, timeout=600)
    assert sorted(path.name for path in (root / "written").iterdir()) == ["checkpoint_7"]
    for kind in ("t5x", "t5x_orbax", "huggingface", "written"):
        assert_equal(tmp_path / f"from_{kind}", expected)


def test_a_bucket_is_tensorstores_gcs():
    assert storage.kvstore("gs://t5-data/a/b/") == {
        "driver": "gcs",
        "bucket": "t5-data",
        "path": "a/b/",
    }
    with pytest.raises(UserError, match="names a bucket"):
        storage.kvstore("gs:///a")


def test_a_value_network_that_t5x_trained_beside_the_policy_is_left_out_and_said(
    values, make_checkpoint, tmp_path
):
    expected = values()
    beside = {
        "value.head.kernel": np.ones((8, 1), np.float32),
        "value.encoder.encoder_norm.scale": np.ones(8, np.float32),
    }
    folder = make_checkpoint(T5X, expected | beside)
    for to in FORMATS:
        result = convert(checkpoint=folder, output=str(tmp_path / to), to=to)
        assert "left out: a value network (2 arrays under target.value)" in result["message"]
        assert_equal(result["output"], expected)
