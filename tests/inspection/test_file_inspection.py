"""`jaxalign inspect`: what it says of a file, and that the settings it chooses suit the data."""

import ast
import contextlib
import csv
import re
from pathlib import Path

import gin
import jax
import pytest

from jaxalign.cli import gin_setup
from jaxalign.cli.commands import COMMANDS, read_signature
from jaxalign.cli.flags import parse_flags
from jaxalign.data.rejections import DataError
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.inspection.file_inspection import _name, inspect
from jaxalign.interop.convert import convert
from jaxalign.networks.policy import Policy
from jaxalign.runs.folder import Run
from tests.fixtures.families import FAMILIES
from tests.fixtures.run_folders import write_run


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def settings_of(path="data.gin"):
    """What a gin file sets, as text by name."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    found = dict(re.findall(r"^\s*(\w+) = (.*)$", text, re.MULTILINE))
    return found | {"objective": re.search(r"objectives/(\w+)\.gin'", text).group(1)}


def words(i, count=8):
    names = ("tin", "cup", "red", "lion", "golden", "cheap", "thai", "food", "serves", "bar")
    return " ".join(names[(i * 7 + k * 3) % 10] for k in range(count))


def triplets(count=120):
    return [
        {"prompt": f"{words(i)} {i}", "response": words(i + 1), "feedback": i % 2}
        for i in range(count)
    ]


def test_thumbs(write_lines, capsys):
    result = inspect(write_lines(triplets()))
    assert result == {"kind": "triplet", "records": 120, "gin_file": "data.gin"}
    said = capsys.readouterr().out
    assert "kind 'triplet'" in said and "feedback: 0: 50.0 %, 1: 50.0 %" in said
    assert said.count("as the model sees it") == 3
    found = settings_of()
    assert found["objective"] == "dro_v" and found["kind"] == "'triplet'"
    assert found["DESIRABLE_THRESHOLD"] == "0.5"
    assert found["long_prompts"] == "'truncate'" and found["duplicates"] == "'reject'"


def test_images_that_are_not_measured_are_told(write_lines, capsys):
    lines = [{**line, "image": f"{number}.png"} for number, line in enumerate(triplets(40))]
    inspect(write_lines([*lines, *triplets(60)[40:]]), vocabulary="bytes")
    assert "images: 40 records have one, which is not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "kind", "objective"),
    [
        ([{"prompt": words(i), "response": words(i + 1)} for i in range(50)], "seq2seq", "sft"),
        ([{"prompt": words(i), "chosen": words(i + 1), "rejected": words(i + 2)} for i in range(50)], "pair", "dpo"),
        ([{"prompt": words(i), "responses": [words(i + 1), words(i + 2)]} for i in range(50)], "ranked", "dpo"),
        ([{"prompt": words(i), "responses": [words(i + k) for k in (1, 2, 3)]} for i in range(50)], "ranked", "infonca"),
        ([{"prompt": words(i), "response": words(i + 1), "scores": {"a": i % 5}} for i in range(50)], "multi", "dro_v"),
    ],
)  # fmt: skip
def test_the_method_suits_the_kind(rows, kind, objective, write_lines):
    assert inspect(write_lines(rows), vocabulary="bytes")["kind"] == kind
    assert settings_of()["objective"] == objective


def test_feedback_that_no_record_states_is_not_described_as_stated(write_lines, capsys):
    rows = [{"prompt": words(i), "chosen": words(i + 1), "rejected": "no"} for i in range(50)]
    inspect(write_lines(rows), vocabulary="bytes")
    said = capsys.readouterr().out
    assert "feedback: 50 records state none" in said and "feedback: 0:" not in said
    assert (
        "changed by the vocabulary (line breaks, repeated spaces, unknown characters): nothing\n"
        in said
    )


def test_graded_feedback_has_a_threshold_that_divides_it(write_lines):
    rows = [row | {"feedback": [1, 4, 4, 5, 5, 5][i % 6]} for i, row in enumerate(triplets())]
    inspect(write_lines(rows), vocabulary="bytes")
    assert settings_of()["DESIRABLE_THRESHOLD"] == "4.0"


def test_dialogues_keep_their_end_and_long_prompts_are_said_to_be_cut(write_lines, capsys):
    rows = [
        {
            "prompt": "user: hello\nagent: yes?\n" * (100 if i < 20 else 2) + f"user: {i}",
            "response": "ok",
        }
        for i in range(100)
    ]
    inspect(write_lines(rows), vocabulary="bytes")
    found = settings_of()
    assert found["long_prompts"] == "'truncate_left'"
    assert found["TASK_FEATURE_LENGTHS"] == "{'inputs': 1024, 'targets': 16}"
    assert "prompts cut at their beginning: 20 of 100" in capsys.readouterr().out


def test_rows_have_room_for_the_longest_example(write_lines):
    rows = [
        {"prompt": words(i, 4), "chosen": words(i, 5 + i % 90), "rejected": words(i + 1, 3)}
        for i in range(100)
    ]
    inspect(write_lines(rows), vocabulary="bytes")
    found = {
        name: ast.literal_eval(settings_of()[name])
        for name in ("TASK_FEATURE_LENGTHS", "ROW_LENGTHS", "PACK")
    }
    assert found["PACK"]
    assert found["ROW_LENGTHS"]["inputs"] >= found["TASK_FEATURE_LENGTHS"]["inputs"]
    assert found["ROW_LENGTHS"]["targets"] >= 2 * found["TASK_FEATURE_LENGTHS"]["targets"]


def test_repeated_and_bad_records_are_counted_and_allowed_for(write_lines, capsys):
    rows = triplets()
    inspect(write_lines([*rows, *rows[:30], "{", "[1]", *["no json"] * 20]), vocabulary="bytes")
    said = capsys.readouterr().out
    assert "records: 172, usable 150" in said and "repeated 30" in said
    assert (
        "rejected: 21 invalid_json, 1 wrong_type; the first: " in said
        and ":151: not valid JSON" in said
    )
    found = settings_of()
    assert found["duplicates"] == "'keep'"
    assert found["max_rejected_fraction"] == "0.14"  # 22 of 172 are 12.8 %, and a point more
    assert f"max_rejected_fraction is set to {found['max_rejected_fraction']}" in said


def test_names_and_layouts_of_others_are_written_down(write_lines):
    rows = [
        {"prompt": r["prompt"], "completion": r["response"], "label": bool(r["feedback"])}
        for r in triplets()
    ]
    inspect(write_lines(rows), vocabulary="bytes")
    assert settings_of()["fields"] == "'response=completion,feedback=label'"
    message = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    path = write_lines([{"messages": message}] * 50)
    with pytest.raises(DataError, match=r"data\.gin exists already"):
        inspect(path, vocabulary="bytes")
    inspect(path, vocabulary="bytes", overwrite=True)
    assert settings_of()["layout"] == "'trl'"


def test_tables(tmp_path, capsys):
    with open("data.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "response", "feedback"])
        writer.writeheader()
        writer.writerows(triplets())
    inspect("data.csv", vocabulary="bytes", output="here/of.csv.gin")
    assert settings_of("here/of.csv.gin")["kind"] == "'triplet'"


def test_a_file_too_small_to_hold_anything_out_trains_without(write_lines):
    inspect(write_lines(triplets(1)))
    found = settings_of()
    assert (found["eval_split"], found["BEST_METRIC"], found["BATCH_SIZE"]) == ("''", "None", "1")


def test_very_long_responses_are_left_out_and_long_rows_make_small_batches(write_lines, capsys):
    rows = [
        {
            "prompt": f"{words(i)} {i}",
            "chosen": "a" * (3000 if i % 12 == 0 else 900),
            "rejected": "b",
        }
        for i in range(200)
    ]
    inspect(write_lines(rows), vocabulary="bytes")
    assert "records left out because of a long response: 17" in capsys.readouterr().out
    found = settings_of()
    assert found["TASK_FEATURE_LENGTHS"] == "{'inputs': 48, 'targets': 1024}"
    assert found["BATCH_SIZE"] == "8"
    assert found["max_rejected_fraction"] == "0.1"  # 17 of 200 are 8.5 %


def test_prompts_alone_are_for_generation(write_lines, capsys):
    path = write_lines([{"prompt": words(i)} for i in range(30)])
    assert inspect(path, vocabulary="bytes")["gin_file"] is None
    assert f"jaxalign generate --checkpoint=RUN --input={path}" in capsys.readouterr().out


def test_a_vocabulary_of_one_s_own(write_lines, small_vocabulary, capsys):
    inspect(write_lines(triplets()), vocabulary=small_vocabulary, extra_ids=100)
    found = settings_of()
    assert found["VOCABULARY"] == repr(small_vocabulary) and found["VOCAB_SIZE"] == "512"
    with pytest.raises(DataError, match="Cannot read the SentencePiece model nothing"):
        inspect(write_lines(triplets()), vocabulary="nothing", overwrite=True)


def test_a_model_with_a_pretrained_checkpoint_starts_from_it(write_lines, small_vocabulary, capsys):
    path = write_lines(triplets())
    checkpoint = "gs://t5-data/pretrained_models/t5x/flan_t5_base/checkpoint_1184000"
    with pytest.raises(
        DataError, match=r"needs its own vocabulary \(gs://.*--vocabulary=.*--extra_ids=100"
    ):
        inspect(path, model="flan_t5_base")
    inspect(path, model="flan_t5_base", vocabulary=small_vocabulary)
    said = capsys.readouterr().out
    assert (
        f"--MODEL_DIR=runs/data_sft --INITIAL_CHECKPOINT_PATH={checkpoint} --LEARNING_RATE=0.0001"
        in said
    )
    assert "--INITIAL_CHECKPOINT_PATH=runs/data_sft" in said
    # The checkpoint has its own number of rows.
    assert "VOCAB_SIZE" not in settings_of()
    inspect(path, model="byt5_small", overwrite=True)
    assert settings_of()["VOCABULARY"] == "'bytes'"


def test_a_checkpoint_gives_its_network_and_its_vocabulary(write_lines, runs, capsys):
    convert(checkpoint=runs["a"], output="bytes_model", to="huggingface")
    own = Path("own.model")
    texts = [f"{row['prompt']} {row['response']}" for row in triplets()]
    train_sentencepiece(texts, str(own), vocab_size=60)
    Path("bytes_model/tokenizer_config.json").rename("tokenizer_config.json")
    convert(
        checkpoint="bytes_model",
        output="pieces_model",
        to="huggingface",
        vocabulary=str(own),
        extra_ids=4,
    )
    data = write_lines(triplets())
    with pytest.raises(DataError, match="records no vocabulary; give its own as --vocabulary"):
        inspect(data, checkpoint="bytes_model")
    Path("tokenizer_config.json").rename("bytes_model/tokenizer_config.json")
    inspect(data, checkpoint="bytes_model")
    found = settings_of()
    assert found["VOCABULARY"] == "'bytes'"
    config = Run(runs["a"]).config("policy")
    for name in ("emb_dim", "head_dim", "num_decoder_layers", "logits_via_embedding"):
        assert found[name] == repr(getattr(config, name))
    assert (found["mlp_activations"], found["VOCAB_SIZE"]) == ("('relu',)", "262")
    inspect(data, checkpoint="pieces_model", overwrite=True)
    found = settings_of()
    assert ast.literal_eval(found["VOCABULARY"]) == str(Path("data.model").absolute())
    assert Path("data.model").read_bytes() == own.read_bytes()
    assert (found["EXTRA_IDS"], found["VOCAB_SIZE"]) == ("4", "262")
    said = capsys.readouterr().out
    start = Path("pieces_model").absolute()
    assert f"--MODEL_DIR=runs/data_sft --INITIAL_CHECKPOINT_PATH={start} --LEARNING_RATE" in said


@pytest.mark.parametrize("family", ["umt5", "t5gemma", "t5gemma2"])
def test_the_gin_file_of_a_checkpoint_describes_its_network(family, write_lines, tmp_path):
    config = FAMILIES[family].replace(vocab_size=262)
    policy = Policy(config)
    write_run(tmp_path / "run", "policy", policy, policy.init(jax.random.key(0)))
    inspect(write_lines(triplets()), checkpoint="run")
    command = COMMANDS["train"]
    signature = read_signature(command)
    flags = ["--gin_file=data.gin", "--MODEL_DIR=runs/x", "--INITIAL_CHECKPOINT_PATH=run"]
    try:
        function = gin_setup.configure(parse_flags(flags, signature), command, signature)
        assert gin.get_bindings(function)["objective"].policy.config == config
    finally:
        gin.clear_config()


def test_a_checkpoint_and_a_model_contradict_each_other(write_lines):
    with pytest.raises(DataError, match="leave --model=mini out"):
        inspect(write_lines(triplets()), checkpoint="anywhere", model="mini")


@pytest.mark.parametrize(
    ("file", "gin_file"),
    [("my.csv", "my.gin"), ("my.json.gz", "my.gin"), ("v1.2.jsonl", "v1_2.gin")],
)
def test_the_gin_file_is_named_after_the_data(file, gin_file):
    assert _name(file) + ".gin" == gin_file


@pytest.mark.parametrize(("option", "message"), [
    ({"model": "flan_t5_bse"}, "--model=flan_t5_bse: .*did you mean flan_t5_base"),
    ({"objective": "dor_v"}, "--objective=dor_v: .*did you mean dro_v"),
])  # fmt: skip
def test_unknown_names_are_said_before_anything_is_read(option, message, write_lines):
    with pytest.raises(DataError, match=message):
        inspect(write_lines(triplets()), **option)


def test_the_held_out_file_is_read_too(write_lines, capsys):
    held_out = write_lines([*triplets(9), "{"], "held_out.jsonl")
    inspect(write_lines(triplets()), validation_file=held_out, vocabulary="bytes")
    said = capsys.readouterr().out
    assert f"{held_out}:\n  records: 10, usable 9" in said and "rejected: 1 invalid_json" in said
    with pytest.raises(DataError, match="No file matches 'nothing'"):
        inspect(write_lines(triplets()), validation_file="nothing", overwrite=True)
    other = write_lines([{"prompt": "p", "response": "r"}], "other.jsonl")
    with pytest.raises(DataError, match=r"other.jsonl holds kind 'seq2seq', and .* kind 'triplet'"):
        inspect(write_lines(triplets()), validation_file=other, overwrite=True)


def test_a_failure_leaves_no_file_and_keeps_the_old_vocabulary(write_lines, tmp_path):
    Path("data.model").write_text("old")
    for rows in ([{"prompt": words(i)} for i in range(30)], [{"prompt": " ", "response": "r"}] * 9):
        with contextlib.suppress(DataError):
            inspect(write_lines(rows), overwrite=True)
    assert Path("data.model").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "data.model"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}], "No record of .* could be recognised .fields of the first: a.*--kind"),
        (["no json"], "begins with 'no json'"),
        ([], r"data\.jsonl has no line that can be read|data\.jsonl is empty"),
        (['{"a": 1', "x"], "has no line that can be read; the first: .*:1: not valid JSON"),
        ([{"prompt": " ", "response": "r", "feedback": 1}], "no usable records .*:1: the prompt is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_run_with_one_line_errors(rows, message, write_lines):
    with pytest.raises(DataError, match=message) as caught:
        inspect(write_lines(rows), vocabulary="bytes")
    assert "\n" not in str(caught.value)
