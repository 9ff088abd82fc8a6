"""`generate`: the file format, and that an interrupted run equals an uninterrupted one."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data.candidates import read_candidates
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.tokenization import Limits
from jaxalign.errors import UserError
from jaxalign.inference import sampling
from jaxalign.inference.generate import generate
from tests.fixtures.letter_networks import letter_decoder

OPTIONS = {"num_samples": 3, "temperature": 1.0, "batch_size": 4, "seed": 7}


@pytest.fixture
def prompts(write_lines):
    return write_lines("prompts.jsonl", [{"prompt": f"say {'x' * i}", "tag": i} for i in range(10)])


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_every_prompt_gets_its_line_with_the_other_fields(fake_runs, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    summary = generate("run3", prompts, str(output), **OPTIONS)
    lines = lines_of(output)
    shares = {"cut_prompts": 0.0, "unknown_pieces": 0.0, "unfinished": 0.0}
    assert summary == {"output": str(output), "prompts": 10, "generated": 10, **shares}
    assert [line["id"] for line in lines] == list(range(10))
    assert [line["tag"] for line in lines] == list(range(10))
    assert all(len(line["responses"]) == len(line["log_probs"]) == 3 for line in lines)
    # Three nats a token, EOS included.
    assert lines[0]["log_probs"][0] == -3 * (len(lines[0]["responses"][0]) + 1)


def decoder_that_often_never_ends(policy, settings, batch_size, hooks):
    """Like the stand-in's decoder, but half of the prompts get responses without EOS."""
    decode = letter_decoder(policy, settings, batch_size, hooks)

    def endless(params, prompts, indices, key):
        responses, log_probs = decode(params, prompts, indices, key)
        odd = np.array([len(prompt) % 2 == 1 for prompt in prompts])[:, None, None]
        return np.where(odd & (responses == 1), ord("z"), responses), log_probs

    return endless


def test_the_output_is_candidates_whose_sampler_tells_seeds_apart(fake_runs, prompts, tmp_path):
    output, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    generate("run3", prompts, str(output), **OPTIONS)
    generate("run3", prompts, str(other), **{**OPTIONS, "seed": 8})
    candidates = read_candidates(output)
    assert candidates.annotation("log_probs", "scores").missing == 0
    samplers = {line["sampler"] for path in (output, other) for line in lines_of(path)}
    assert len(samplers) == 2


def test_new_responses_do_not_inherit_the_annotations_of_old_ones(fake_runs, write_lines, tmp_path):
    old = {"prompt": "p", "responses": ["a"], "feedback": [1], "annotations": {}, "tag": 1}
    output = str(tmp_path / "out.jsonl")
    generate("run3", write_lines("in.jsonl", [old]), output)
    (line,) = lines_of(output)
    assert line["tag"] == 1 and not {"feedback", "annotations"} & set(line)


@pytest.mark.parametrize("kept_lines", [0, 1, 4, 7, 10])
def test_an_interrupted_run_equals_an_uninterrupted_one(
    fake_runs, prompts, tmp_path, monkeypatch, kept_lines
):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    monkeypatch.setattr(sampling, "decoder", decoder_that_often_never_ends)
    unfinished = generate("run3", prompts, str(whole), **OPTIONS)["unfinished"]
    generate("run3", prompts, str(torn), **OPTIONS)
    content = whole.read_bytes().splitlines(keepends=True)
    # The process died in the middle of a line.
    tail = content[kept_lines][:9] if kept_lines < 10 else b""
    torn.write_bytes(b"".join(content[:kept_lines]) + tail)
    summary = generate("run3", prompts, str(torn), **OPTIONS)
    assert summary["generated"] == 10 - kept_lines
    # The shares are those of the whole file, as if one call had written it.
    assert summary["unfinished"] == unfinished == 0.5
    assert torn.read_bytes() == whole.read_bytes()


def test_resuming_with_other_settings_is_refused(fake_runs, prompts, tmp_path):
    output = str(tmp_path / "out.jsonl")
    generate("run3", prompts, output, **OPTIONS)
    with pytest.raises(UserError, match=r"seed: 7 then, 8 now.*--overwrite"):
        generate("run3", prompts, output, **{**OPTIONS, "seed": 8})
    before = lines_of(output)
    generate("run3", prompts, output, overwrite=True, **{**OPTIONS, "seed": 8})
    assert [x["responses"] for x in lines_of(output)] != [x["responses"] for x in before]


def test_resuming_with_other_prompts_is_refused(fake_runs, prompts, write_lines, tmp_path):
    output = str(tmp_path / "out.jsonl")
    generate("run3", prompts, output, **OPTIONS)
    other = write_lines("other.jsonl", [{"prompt": "say "}, {"prompt": "else"}])
    with pytest.raises(UserError, match=r"out.jsonl:2: its prompt is not prompt 1"):
        generate("run3", other, output, **OPTIONS)
    shorter = write_lines("short.jsonl", [{"prompt": "say "}])
    with pytest.raises(UserError, match=r"out.jsonl:2: more lines than the input"):
        generate("run3", shorter, output, **OPTIONS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda side, lines: side.write_text("[1]"), "must hold a JSON object; give another"),
        (lambda side, lines: side.write_text('{"seed": 7, "seed": 8}'), "occurs twice"),
        (lambda side, lines: lines.write_text(lines.read_text().replace("finished", "f")), ":1: "),
    ],
)
def test_a_damaged_output_is_refused_in_one_line(fake_runs, prompts, tmp_path, damage, message):
    output = tmp_path / "out.jsonl"
    generate("run3", prompts, str(output), **OPTIONS)
    damage(tmp_path / "out.jsonl.settings.json", output)
    with pytest.raises(UserError, match=rf"(?s){message}.*--overwrite"):
        generate("run3", prompts, str(output), **OPTIONS)


def test_a_foreign_output_is_not_touched(fake_runs, prompts, tmp_path):
    output = tmp_path / "notes.txt"
    output.write_text("mine\n")
    with pytest.raises(UserError, match="cannot be resumed"):
        generate("run3", prompts, str(output), **OPTIONS)
    assert output.read_text() == "mine\n"


def test_the_prompts_are_not_overwritten_by_their_responses(prompts):
    before = Path(prompts).read_text()
    with pytest.raises(UserError, match="--output is the input"):
        generate("run3", prompts, prompts, overwrite=True, **OPTIONS)
    assert Path(prompts).read_text() == before


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", r"prompts.jsonl:2: not valid JSON"),
        ("[1]", r"prompts.jsonl:2: expected an object, got list"),
        (
            {"question": "?"},
            r"prompts.jsonl:2: field 'prompt' is missing \(fields there: question\)",
        ),
        ({"prompt": 3}, r"prompts.jsonl:2: field 'prompt' must be a non-empty string"),
        ({"prompt": "  "}, r"prompts.jsonl:2: field 'prompt' must be a non-empty string"),
        (
            {"prompt": [{"role": "user", "content": 3}]},
            r"prompts.jsonl:2: a message has no text as its content",
        ),
    ],
)
def test_a_malformed_line_is_named(fake_runs, write_lines, tmp_path, bad, message):
    path = write_lines("prompts.jsonl", [{"prompt": "fine"}, bad])
    with pytest.raises(UserError, match=message):
        generate("run3", path, str(tmp_path / "out.jsonl"))


def test_missing_and_empty_inputs_are_told(fake_runs, write_lines, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        generate("run3", str(tmp_path / "absent.jsonl"), str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="holds no prompts"):
        generate("run3", write_lines("empty.jsonl", ["", ""]), str(tmp_path / "out.jsonl"))


def test_prompt_field_and_the_inputs_own_id(fake_runs, write_lines, tmp_path):
    path = write_lines("in.jsonl", ["", {"act": "hello()", "id": "a7", "responses": ["old"]}])
    output = str(tmp_path / "out.jsonl")
    generate("run3", path, output, prompt_field="act")
    (line,) = lines_of(output)
    assert (line["id"], line["source_id"], line["prompt"]) == (0, "a7", "hello()")
    assert line["responses"] != ["old"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 2}, "would repeat the greedy response"),
        ({"num_beams": 2, "num_samples": 3}, "exceeds num_beams"),
        ({"num_beams": 2, "temperature": 1.0}, "exclude each other"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_contradictory_decoding_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        sampling.DecodingSettings(max_target_length=4, **options)


def test_responses_in_process_equal_those_in_the_file(
    fake_runs, letter_policy, vocabulary, prompts, tmp_path
):
    output = tmp_path / "out.jsonl"
    generate("run3", prompts, str(output), **OPTIONS)
    lines = lines_of(output)
    responses, log_probs = sampling.generate_responses(
        letter_policy,
        {"cost": 3.0},
        TextEncoder(vocabulary, Limits(32, 8)),
        [line["prompt"] for line in lines],
        sampling.DecodingSettings(max_target_length=8, num_samples=3, temperature=1.0),
        batch_size=4,
        seed=7,
    )
    assert responses == [line["responses"] for line in lines]
    np.testing.assert_array_equal(log_probs, [line["log_probs"] for line in lines])
