"""A run that is exported and imported again reads text as before."""

import json
from pathlib import Path

import pytest

from jaxalign.errors import UserError
from jaxalign.interop import reading_settings, run_writer
from jaxalign.interop.checkpoint_sources import HUGGING_FACE, RUN, T5X, T5X_ORBAX, open_source
from jaxalign.interop.convert import convert
from jaxalign.interop.reading_settings import ReadingSettings
from tests.interop.conftest import CONFIG

LENGTHS = {"inputs": 12, "targets": 8}


@pytest.fixture
def run(values, make_checkpoint):
    """A run folder that cuts prompts of more than 12 tokens at their beginning."""
    options = {"max_input_length": 12, "max_target_length": 8}
    config = CONFIG.replace(vocab_size=300)
    folder = make_checkpoint(RUN, values(config), config, vocabulary="bytes", **options)
    record(folder, long_prompts="truncate_left")
    return folder


def record(folder, **changed):
    file = Path(folder) / "networks.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


@pytest.mark.parametrize("to", [T5X, T5X_ORBAX, HUGGING_FACE])
def test_lengths_and_the_cut_come_back(run, tmp_path, to):
    exported = open_source(convert(checkpoint=run, output=str(tmp_path / "x"), to=to)["output"])
    assert exported.reading == ReadingSettings(LENGTHS, "truncate_left")
    described = run_writer.describe(exported, CONFIG, None, {"inputs": 0, "targets": 0})
    assert (described["feature_lengths"], described["long_prompts"]) == (LENGTHS, "truncate_left")
    assert run_writer.lacking(described) == ["--vocabulary"]
    # A length that the user gives is another one on purpose.
    wider = run_writer.describe(exported, CONFIG, None, {"inputs": 20, "targets": 0})
    assert wider["feature_lengths"] == LENGTHS | {"inputs": 20}


def test_an_export_of_other_lengths_is_not_taken_for_the_same(run, tmp_path):
    command = {"checkpoint": run, "output": str(tmp_path / "hf"), "to": HUGGING_FACE}
    convert(**command)
    assert "was there already" in convert(**command)["message"]
    record(run, feature_lengths=LENGTHS | {"targets": 9})
    with pytest.raises(UserError, match="exists already, with other lengths"):
        convert(**command)


def test_transformers_reads_them_and_its_own_files_are_read(run, tmp_path):
    folder = tmp_path / "hf"
    convert(checkpoint=run, output=str(folder), to=HUGGING_FACE)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert (tokenizer["model_max_length"], tokenizer["truncation_side"]) == (12, "left")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["max_new_tokens"], generation["eos_token_id"]) == (8, 1)
    # A folder of transformers has no jaxalign.json.
    (folder / reading_settings.FILE).unlink()
    expected = ReadingSettings(LENGTHS, "truncate_left")
    assert reading_settings.of_transformers(str(folder)) == expected
    (folder / "generation_config.json").write_text('{"max_length": 21}')
    (folder / "tokenizer_config.json").write_text(f'{{"model_max_length": {10**30}}}')
    assert reading_settings.of_transformers(str(folder)) == ReadingSettings({"targets": 20})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"feature_lengths": {"inputs": 0}}, r"jaxalign.json, feature_lengths: 'inputs' must be"),
        ({"feature_lengths": {"targets": 10**9}}, "'targets' must be a whole number from 1 to"),
        ({"feature_lengths": [8]}, "'feature_lengths' must be an object"),
        ({"long_prompts": "drop"}, "'long_prompts' must be one of truncate, truncate_left, reject"),
        ([], "must hold a JSON object"),
    ],
)
def test_malformed_settings_are_named(tmp_path, content, message):
    (tmp_path / reading_settings.FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        reading_settings.read(str(tmp_path))


def test_unknown_settings_leave_no_file(tmp_path):
    reading_settings.write(str(tmp_path), ReadingSettings())
    assert list(tmp_path.iterdir()) == []
    assert reading_settings.read(str(tmp_path)) == ReadingSettings()
