"""The same text is the same tokens, and the same file the same records, wherever it is read."""

import pytest

from jaxalign.data import cache
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.evaluation_records import read_evaluation_records, recognise_kind
from jaxalign.data.record_fields import RecordError
from jaxalign.data.records import parse_record
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.tokenization import Limits
from jaxalign.data.vocabularies import ByteVocabulary
from jaxalign.errors import UserError

LIMITS = Limits(12, 12, "truncate_left")
LONG, SHORT = "a prompt that is far too long", "short"


def rows_of(kind):
    """Thirty records; of two further ones the response is too long, and one comes twice."""
    made = []
    for i in range(32):
        prompt, response = f"{LONG if i % 2 else SHORT} {i}", "x" * (30 if i >= 30 else 5)
        made.append(
            {
                "triplet": {"prompt": prompt, "response": response, "feedback": i % 3},
                "seq2seq": {"prompt": prompt, "response": response},
                "pair": {"prompt": prompt, "chosen": response, "rejected": "no", "margin": i / 8},
                "ranked": {"prompt": prompt, "responses": [response, "b"], "feedback": [1, 5]},
                "multi": {"prompt": prompt, "response": response, "scores": {"a": i, "b": 1}},
            }[kind]
        )
    return [*made, made[3]]


@pytest.mark.parametrize("kind", ["triplet", "seq2seq", "pair", "ranked", "multi"])
@pytest.mark.parametrize("given", [True, False])
def test_a_file_gives_an_evaluation_the_records_of_its_cache(kind, given, write_lines, tmp_path):
    path = write_lines(rows_of(kind))
    options = {"kind": kind, "train_file": path, "validation_file": path, "splits": ["train"]}
    options |= {"max_input_length": 12, "max_target_length": 12, "long_prompts": "truncate_left"}
    folder = str(tmp_path / "cache")
    metadata = cache.cache("mine", folder, max_rejected_fraction=0.2, **options)
    encoder = TextEncoder(ByteVocabulary(), LIMITS)
    side = str(tmp_path / "rejected.jsonl")
    from_file = read_evaluation_records(path, side_file=side, kind=kind if given else "")
    from_cache = read_evaluation_records(folder, side_file=side, split="train")
    readable = from_file.readable([encoder])
    assert len(readable.records) == 30
    assert readable.to_set() == from_cache.readable([encoder]).to_set() == from_cache.to_set()
    assert readable.rejected == metadata.rejected["train"] == {"long_response": 2, "duplicate": 1}
    assert f"3 of 33 records of {path} were left out" in readable.describe_rejected()
    tokens = encoder.prompts([record.prompt for record in readable.records])
    cached = [example.inputs.tolist() for example in TaskCache(folder).split("train")]
    assert tokens.tokens == cached
    assert tokens.cut == metadata.noted("truncated_prompts") == 15
    assert encoder.describe_cut(tokens).startswith("15 of 30 prompts were cut at their beginning")
    assert encoder.describe_cut(tokens) in metadata.report.splitlines()


@pytest.mark.parametrize(("long_prompts", "kept"), [("truncate", "abc"), ("truncate_left", "def")])
def test_prompts_are_cut_on_the_side_that_is_asked_for(long_prompts, kept):
    encoder = TextEncoder(ByteVocabulary(), Limits(4, 4, long_prompts))
    found = encoder.prompts(["abcdef", "ab"])
    assert found.tokens == [
        [*ByteVocabulary().encode(kept), 1],
        [*ByteVocabulary().encode("ab"), 1],
    ]
    assert (found.cut, found.cut_fraction) == (1, 0.5)
    # A response keeps its beginning, whatever is done with prompts.
    assert encoder.responses(["abcdef"]).tokens == [[*ByteVocabulary().encode("abc"), 1]]


def test_a_rejected_prompt_is_named_with_the_remedy():
    encoder = TextEncoder(ByteVocabulary(), Limits(4, 4, "reject"))
    assert encoder.prompts(["abc"]).cut == 0
    with pytest.raises(UserError, match=r"'abcdef' has 7 tokens .* --long_prompts=truncate"):
        encoder.prompts(["abc", "abcdef"])


def test_what_one_policy_cannot_read_is_left_out_for_all(write_lines, tmp_path):
    path = write_lines(rows_of("triplet"))
    records = read_evaluation_records(path, side_file=str(tmp_path / "r"), duplicates="keep")
    narrow, wide = (TextEncoder(ByteVocabulary(), Limits(12, size)) for size in (12, 64))
    assert len(records.readable([wide]).records) == 33
    assert records.readable([wide, narrow]).rejected == {"long_response": 2}
    with pytest.raises(UserError, match=r"no record that can be evaluated; the last one, .*tokens"):
        records.readable([TextEncoder(ByteVocabulary(), Limits(12, 4))])


def test_kinds_are_recognised_by_their_fields():
    for kind in ("triplet", "seq2seq", "pair", "ranked", "multi"):
        assert recognise_kind(rows_of(kind)[0]) == kind
    assert recognise_kind({"prompt": "p"}) == ""
    # Samples that `generate` wrote are nobody's ranking.
    candidates = {"prompt": "p", "responses": ["a", "b"]}
    for more in ({"log_probs": [-1, -2]}, {"annotations": {"judge": {"scores": [0, 1]}}}):
        assert recognise_kind({**candidates, **more}) == ""
        # Their position says nothing, so that it is not taken for a rank.
        with pytest.raises(RecordError, match="candidates, in no order"):
            parse_record({**candidates, **more}, "ranked")
