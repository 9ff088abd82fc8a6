"""A run folder from a stranger is read or refused in one line; it neither hangs nor reads anything outside of itself."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
import tensorstore as ts

from jaxalign import untrusted
from jaxalign.errors import UserError
from jaxalign.interop.checkpoint_sources import open_source
from jaxalign.networks.policy import Policy
from jaxalign.runs import manifests
from jaxalign.runs.folder import Run
from jaxalign.runs.metrics import keep_lines_up_to, read_metrics
from jaxalign.training.checkpointing import Checkpointer
from jaxalign.training.optimizers import adamw
from jaxalign.training.state import build_transformations, create_state

from .conftest import CONFIG

SECONDS = 30


@pytest.fixture(autouse=True)
def no_hang():
    """Ends a test that waits for a pipe or computes for ever."""

    def fail(number, frame):
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def read_everything(path):
    """What `generate` reads of a run folder."""
    run = Run(path)
    trained = run.policy()
    run.length("inputs")
    return trained, run.vocabulary


def refusal(path, read=read_everything):
    """The one line that a folder is refused with."""
    with pytest.raises(UserError) as caught:
        read(path)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000 and str(path.name) in line
    return line


def test_an_honest_folder_is_read(run_copy):
    trained, vocabulary = read_everything(run_copy)
    assert trained.network == Policy(CONFIG) and vocabulary.size == 259
    expected = Policy(CONFIG).init(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, trained.params, expected)


def in_config(**changes):
    return lambda content: content["networks"]["policy"]["config"].update(changes)


def in_policy(**changes):
    return lambda content: content["networks"]["policy"].update(changes)


def at_top(**changes):
    return lambda content: content.update(changes)


DESCRIPTIONS = {
    "networks is a list": (at_top(networks=[]), "'networks' must be an object"),
    "a network is a number": (at_top(networks={"policy": 3}), "'networks' must be"),
    "a role is a path": (at_top(networks={"../x": {}}), "names of roles"),
    "100,000 layers": (in_config(num_encoder_layers=100_000), "'num_encoder_layers' must be"),
    "a width of 1e9": (in_config(emb_dim=10**9), "'emb_dim' must be"),
    "a vocabulary of 1e12": (in_config(vocab_size=10**12), "'vocab_size' must be"),
    "a width in text": (in_config(emb_dim="8"), "'emb_dim' must be a whole number"),
    "a width that is true": (in_config(num_heads=True), "'num_heads' must be"),
    "a width that is null": (in_config(num_heads=None), "'num_heads' must be"),
    "a width that is a fraction": (in_config(mlp_dim=8.5), "'mlp_dim' must be"),
    "a dtype that is an object": (in_config(dtype={}), "'dtype' must be text"),
    "activations that are a number": (in_config(mlp_activations=5), "'mlp_activations' must be"),
    "dropout that is infinite": (in_config(dropout_rate=float("inf")), "'dropout_rate' must be"),
    "scan_layers in text": (in_config(scan_layers="yes"), "'scan_layers' must be true or false"),
    "an unknown key": (in_config(depth=3), "no field depth"),
    "lengths of 1e9": (at_top(feature_lengths={"inputs": 10**9}), "'inputs' must be"),
    "lengths that are a list": (
        at_top(feature_lengths=[16]),
        "'feature_lengths' must be an object",
    ),
    "a negative length": (at_top(feature_lengths={"inputs": -1}), "'inputs' must be"),
    "row lengths in text": (at_top(row_lengths={"inputs": "9"}), "'inputs' must be"),
    "prompts cut otherwise": (at_top(long_prompts="rm"), "'long_prompts' must be one of"),
    "a deviation of zero": (at_top(reward={"mean": 0.0, "std": 0.0}), "'std' must be"),
    "a mean that is NaN": (at_top(reward={"mean": float("nan"), "std": 1.0}), "'mean' must be"),
    "a temperature in text": (at_top(temperature="1"), "'temperature' must be"),
    "a kind that is a list": (in_policy(kind=["policy"]), "'kind' must be text"),
    "an unknown kind": (in_policy(kind="os.system"), "its kind is 'os.system'"),
    "a value token in text": (in_policy(value_token="@"), "'value_token' must be a whole number"),
    "a value token outside": (in_policy(value_token=100_000), "value_token is 100000"),
    "a network inside itself": (in_policy(config=[]), "must be an object"),
    "a run id that is a list": (at_top(run_id=[1]), "'run_id' must be text"),
    "hyperparameters that are text": (at_top(hyperparameters="x"), "'hyperparameters' must be"),
    "an origin without a step": (at_top(initial_checkpoint={"run_id": "x"}), "'step' must be"),
    "an absolute vocabulary": (
        at_top(vocabulary={"kind": "sentencepiece", "path": "/etc/passwd"}),
        "'path' must be the name of a file",
    ),
    "a vocabulary above": (
        at_top(vocabulary={"kind": "sentencepiece", "path": "../other.model"}),
        "'path' must be the name of a file",
    ),
    "bytes with a path": (
        at_top(vocabulary={"kind": "bytes", "path": "config.gin"}),
        "absent for 'bytes'",
    ),
    "1e9 sentinels": (at_top(vocabulary={"kind": "bytes", "extra_ids": 10**9}), "'extra_ids'"),
    "a vocabulary that is a list": (at_top(vocabulary=["bytes"]), "'vocabulary' must be"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_description_of_the_wrong_types_or_sizes(run_copy, edit_json, case):
    change, expected = DESCRIPTIONS[case]
    edit_json(run_copy / "networks.json", change)
    line = refusal(run_copy)
    assert expected in line and "networks.json" in line


TEXTS = {
    "nothing": ("", "not valid JSON"),
    "a list": ("[]", "must hold a JSON object"),
    "5,000 digits": ('{"networks": {}, "value_token": ' + "9" * 5000 + "}", "5000 digits"),
    "deep nesting": ('{"a":' * 100_000, "not valid JSON"),
    "a key twice": ('{"networks": {}, "networks": {}}', "'networks' occurs twice"),
    "bytes": (b"\xff\xfe\x00", "not valid JSON"),
    "too long": ('{"networks": {}, "x": "' + "y" * (9 << 20) + '"}', "at most"),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("file", ["networks.json", "checkpoints/4/jaxalign_manifest.json"])
def test_text_that_is_no_description(run_copy, case, file):
    text, expected = TEXTS[case]
    if file != "networks.json" and case in ("a list", "too long"):
        text, expected = "[]", "cannot be read"
    (run_copy / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected in refusal(run_copy)


FILES = (
    "networks.json",
    "checkpoints/4/jaxalign_manifest.json",
    "checkpoints/4/_CHECKPOINT_METADATA",
    "checkpoints/4/params/_METADATA",
    "checkpoints/4/params/manifest.ocdbt",
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_only_regular_files_of_the_folder_are_read(run_copy, tmp_path, file, kind):
    path = run_copy / file
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        (tmp_path / "outside").write_bytes(content)
        path.symlink_to(tmp_path / "outside")
    refusal(run_copy)
    refusal(run_copy, open_source)


def test_a_device_among_the_chunks_is_not_read(run_copy):
    try:
        os.mknod(
            run_copy / "checkpoints" / "4" / "params" / "d" / "x",
            0o600 | 0o020000,
            os.makedev(1, 5),
        )
    except (PermissionError, FileNotFoundError, OSError):
        pytest.skip("this user cannot make devices")
    assert "neither a regular file nor a folder" in refusal(run_copy)


def test_a_folder_that_links_to_another_is_not_followed(run_copy, tmp_path, written_run):
    params = run_copy / "checkpoints" / "4" / "params"
    params.rename(tmp_path / "elsewhere")
    params.symlink_to(tmp_path / "elsewhere")
    assert "is a link to" in refusal(run_copy)


@pytest.mark.parametrize("name", ["other.model", "again.model"])
def test_a_vocabulary_that_links_outside_is_not_read(run_copy, tmp_path, edit_json, name):
    (tmp_path / "other.model").write_bytes(b"secret")
    link = run_copy / "vocabulary.model"
    target = tmp_path / "other.model"
    if name == "again.model":
        (run_copy / name).symlink_to(target)
        target = run_copy / name
    link.symlink_to(target)
    recorded = {"kind": "sentencepiece", "path": "vocabulary.model", "extra_ids": 0}
    edit_json(run_copy / "networks.json", at_top(vocabulary=recorded))
    assert "is a link to" in refusal(run_copy)
    with pytest.raises(UserError, match="is a link to"):
        _ = Run(run_copy).vocabulary_file  # what `convert` copies


def test_a_manifest_that_lists_files_outside(run_copy, edit_json):
    file = run_copy / "checkpoints" / "4" / "jaxalign_manifest.json"
    edit_json(file, lambda content: content["files"].update({"params/../../../../x": [1, 1]}))
    assert "not in the folder" in refusal(run_copy)


def with_arrays(run, spec):
    """Replaces the parameters of checkpoint 4 by one zarr array, and lists it."""
    params = run / "checkpoints" / "4" / "params"
    for path in sorted(params.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    kvstore = {"driver": "file", "path": f"{params}/policy.kernel/"}
    metadata = {"compressor": {"id": "zstd", "level": 1}} | spec
    ts.open(
        {"driver": "zarr", "kvstore": kvstore, "metadata": metadata, "dtype": "float32"},
        create=True,
    ).result()
    manifests.write_manifest(params.parent, step=4, run_id="abc")


ARRAYS = {
    "chunks of 1e9": ({"shape": [8], "chunks": [10**9]}, "which are larger"),
    "chunks that say how large they are": (
        {"shape": [8], "chunks": [8], "compressor": {"id": "blosc"}},
        "compressed with blosc",
    ),
    "a shape of 1e12": ({"shape": [10**6, 10**6], "chunks": [1, 1]}, "its files have"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_sizes_are_compared_with_the_files(run_copy, case):
    spec, expected = ARRAYS[case]
    with_arrays(run_copy, spec)
    assert expected in refusal(run_copy)
    refusal(run_copy, lambda path: open_source(path).params)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"tree_metadata": 3}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": "../x"}]}}}',
    ],
)
def test_an_index_of_arrays_that_is_none(run_copy, text):
    folder = run_copy / "checkpoints" / "4"
    (folder / "params" / "_METADATA").write_text(text)
    manifests.write_manifest(folder, step=4, run_id="abc")
    assert "_METADATA" in refusal(run_copy)


def test_a_description_of_another_network_than_the_stored_one(run_copy, edit_json):
    """The largest network that is allowed is not even built before the files are looked at."""
    started = time.monotonic()
    edit_json(run_copy / "networks.json", in_config(num_encoder_layers=512, emb_dim=1 << 16))
    assert "at least 513" in refusal(run_copy)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("best", ['{"step": "4"}', '{"step": [4]}', '{"step": 99}'])
def test_a_best_checkpoint_that_is_none_is_passed_over(run_copy, best):
    (run_copy / "best.json").write_text(best)
    assert Run(run_copy).step == 4
    assert "kept no best checkpoint" in refusal(run_copy, lambda path: Run(path, "best"))


@pytest.mark.parametrize("step", ["x", "frist", "1e3", "-1", -1, True, "9" * 5000, "²"])
def test_a_step_that_is_none_is_refused(run_copy, step):
    with pytest.raises(UserError, match="is none: give a number, 'best' or 'latest'"):
        Run(run_copy, step)


def test_steps_in_text_and_numbers_are_alike(run_copy):
    assert Run(run_copy, "2").step == Run(run_copy, 2).step == 2
    assert Run(run_copy, "").step == Run(run_copy, "latest").step == 4
    with pytest.raises(UserError, match="checkpoint of step 4, not of step 2"):
        Run(run_copy / "checkpoints" / "4", 2)


def test_names_of_files():
    assert untrusted.file_name("spiece.model") == "spiece.model"
    for other in ("", ".", "..", "a/b", "/a", "a\\b", "a\0", "x" * 300, None, 3):
        assert untrusted.file_name(other) is None


def test_parameters_that_are_not_finite_are_refused(tmp_path, written_run):
    """By all commands: they read parameters here or, lazily, in `open_source`."""
    params = Policy(CONFIG).init(jax.random.key(0))
    kernel = params["decoder"]["logits_dense"]["kernel"]
    params["decoder"]["logits_dense"]["kernel"] = kernel.at[3, 3].set(np.nan)
    state = create_state({"policy": params}, build_transformations({"policy": adamw()}, {}))
    checkpointer = Checkpointer(tmp_path / "run")
    checkpointer.save(state.replace(step=1), None, {"run_id": "abc"})
    checkpointer.close()
    content = json.loads((written_run / "networks.json").read_text())
    (tmp_path / "run" / "networks.json").write_text(json.dumps(content))
    assert "logits_dense" in refusal(tmp_path / "run") and "NaN" in refusal(tmp_path / "run")
    source = open_source(tmp_path / "run")
    with pytest.raises(UserError, match=r"logits_dense.* holds NaN"):
        for array in source.params.values():
            array.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 2}, "is of step 2, not of step 4"),
        ({"step": "4"}, "'step' must be"),
        ({"batch_size": "8"}, "'batch_size' must be"),
        ({"accumulated_metrics": [1]}, "'accumulated_metrics' must be an object"),
        ({"accumulated_metrics": {"loss": [1, {}]}}, "'accumulated_metrics' must be pairs"),
    ],
)
def test_metadata_of_a_checkpoint_that_a_run_goes_on_from(run_copy, edit_json, change, message):
    checkpointer = Checkpointer(run_copy)
    edit_json(run_copy / "checkpoints" / "4" / "metadata" / "metadata", at_top(**change))
    assert message in refusal(run_copy, lambda path: checkpointer.metadata(4))
    checkpointer.close()


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"step": "1", "split": "train"}', '{"step": 1}', "9" * 5000]
)
def test_lines_of_metrics_that_are_none(run_copy, line):
    good = '{"step": 1, "split": "train", "loss": 2.0}'
    file = run_copy / "metrics.jsonl"
    file.write_text(f"{good}\n{line}\n")
    assert "metrics.jsonl:2: not a line of metrics" in refusal(
        run_copy, lambda _: read_metrics(file)
    )
    keep_lines_up_to(file, 4)
    assert file.read_text() == f"{good}\n"
