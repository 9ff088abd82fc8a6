"""Indexes: unique identifiers, their tokens, what is written and read again, and what is refused."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data.recorded_vocabulary import RecordedVocabulary, require_same_vocabulary
from jaxalign.data.vocabularies import SentencePieceVocabulary
from jaxalign.errors import UserError
from jaxalign.retrieval.identifier_vocabulary import (
    identifier_texts,
    sentinel_blocks,
    with_identifiers,
)
from jaxalign.retrieval.identifiers import assign, block_sizes, token_ids, unique_share
from jaxalign.retrieval.index import describe, index
from jaxalign.retrieval.index_folder import read_index

SIZES = {"coarse": 3, "levels": 2, "codes": 3}


@pytest.fixture
def make(tmp_path, write_lines, item_lines, query_lines, spm):
    """Makes an index of the twelve items and returns it."""

    def run(items=None, queries=None, name="index", **settings):
        output = tmp_path / name
        given = {"vocabulary": str(spm), **SIZES, **settings}
        found = index(
            write_lines("items.jsonl", items or item_lines),
            str(output),
            queries=write_lines("queries.jsonl", queries or query_lines),
            **given,
        )
        assert found["report"]
        return read_index(output)

    return run


def test_identifiers_are_unique_and_name_their_items(make):
    made = make()
    tokens = {
        tuple(row): item for row, item in zip(made.tokens.tolist(), made.items.ids, strict=True)
    }
    assert len(tokens) == len(made.items) == 12
    # The two items with equal vectors share everything but the counter.
    assert (made.identifiers[-1, :-1] == made.identifiers[-2, :-1]).all()
    assert made.identifiers[-1, -1] == made.identifiers[-2, -1] + 1
    assert made.statistics["unique"] == unique_share(made.identifiers[:, :-1]) < 1
    assert made.blocks[-1].size == made.statistics["largest_group"]


def test_counters_count_up_within_a_group_and_go_on_where_others_ended():
    parts = np.array([[1, 1], [0, 1], [1, 1]])
    assert assign(parts)[:, -1].tolist() == [0, 0, 1]
    assert assign(parts, taken=[[1, 1, 4]])[:, -1].tolist() == [5, 0, 6]


def test_every_part_of_an_identifier_is_one_token_of_its_own_block(make):
    made = make()
    text = made.items.fields[0]["identifier"]
    assert made.vocabulary.encode(text) == made.tokens[0].tolist()
    ends = [(block.first, block.first + block.size) for block in made.blocks]
    assert all(low == high for (_, high), (low, _) in itertools.pairwise(ends))
    for row in made.training:
        assert len(made.vocabulary.encode(row["response"])) == len(made.blocks)


@pytest.mark.parametrize("settings", [{"coarse": 0}, {"levels": 0}, {"quantizer": "rqvae:latent=2,hidden=4,steps=3"}])  # fmt: skip
def test_parts_of_the_identifier_can_be_left_out(make, settings):
    made = make(**settings)
    positions = 1 + bool(settings.get("coarse", 3)) + settings.get("levels", 2)
    assert made.identifiers.shape == (12, positions)


def test_old_ids_of_the_vocabulary_stay_as_they_are(make, spm):
    before, made = SentencePieceVocabulary(spm), make(extra_ids=10)
    text = "a red circle on the left <extra_id_3> square"
    with_sentinels = SentencePieceVocabulary(spm, 10)
    assert made.vocabulary.encode(text) == with_sentinels.encode(text)
    assert made.vocabulary.encode("a star") == before.encode("a star")
    assert made.blocks[0].first == with_sentinels.size


def test_sentinels_of_t5_can_name_the_parts(shared_dir):
    t5 = SentencePieceVocabulary(shared_dir / "data" / "tokenizers" / "t5_cc_all_32000.model", 100)
    sizes = block_sizes(8, 2, 16, 4)
    identifiers = np.array([[7, 0, 15, 3], [0, 15, 0, 0]], np.int32)
    blocks = sentinel_blocks(t5, sizes)
    assert blocks[0].first == 32000 and blocks[-1].first + 4 <= 32100
    for text, row in zip(identifier_texts(t5, identifiers, blocks), identifiers, strict=True):
        assert t5.encode(text) == token_ids(row[None], blocks)[0].tolist()
    with pytest.raises(UserError, match="need 164 tokens, and the vocabulary has 100 sentinels"):
        sentinel_blocks(t5, block_sizes(32, 2, 64, 4))


def test_t5_gets_pieces_behind_its_sentinels(shared_dir):
    t5 = SentencePieceVocabulary(shared_dir / "data" / "tokenizers" / "t5_cc_all_32000.model", 100)
    extended, blocks = with_identifiers(t5, block_sizes(4, 1, 4, 2), "x.model", "")
    identifiers = np.array([[3, 1, 0]], np.int32)
    assert blocks[0].first == 32100 and extended.sentinels == 100
    assert identifier_texts(extended, identifiers, blocks) == ["<c3><a1><u0>"]
    assert extended.encode("house <extra_id_7>") == t5.encode("house <extra_id_7>")


def test_a_run_may_start_from_a_checkpoint_whose_vocabulary_has_no_identifiers_yet(make, spm):
    made = make(extra_ids=10)
    before = RecordedVocabulary(SentencePieceVocabulary(spm, 10).to_dict())
    require_same_vocabulary("a", before, made.recorded_vocabulary, may_extend=True)
    fewer = RecordedVocabulary(SentencePieceVocabulary(spm, 9).to_dict())
    for theirs, ours, allowed in (
        (before, made.recorded_vocabulary, False),
        (made.recorded_vocabulary, before, True),
        # Another number of sentinels would move the ids.
        (fewer, made.recorded_vocabulary, True),
    ):
        with pytest.raises(UserError, match="another vocabulary"):
            require_same_vocabulary("a", theirs, ours, may_extend=allowed)


def test_shuffled_identifiers_are_the_same_ones_in_another_order(make):
    plain, shuffled = make(), make(name="shuffled", shuffle=True)
    as_sets = [sorted(map(tuple, made.identifiers.tolist())) for made in (plain, shuffled)]
    assert as_sets[0] == as_sets[1]
    assert (plain.identifiers != shuffled.identifiers).any()
    # The pieces are the same, but a run that learned the one cannot pass for the other.
    assert plain.vocabulary.sha256 != shuffled.vocabulary.sha256


def test_new_items_get_identifiers_of_the_same_codebooks(make, write_lines, item_lines, tmp_path):
    old = make(items=item_lines[:-3], queries=[{"item": "red star", "query": "star"}], counters=4)
    again = tmp_path / "all"
    index(write_lines("all.jsonl", item_lines), str(again), codebooks_of=old.path)
    grown = read_index(again)
    np.testing.assert_array_equal(grown.identifiers[:9], old.identifiers)
    assert grown.vocabulary == old.vocabulary
    assert len(np.unique(grown.tokens, axis=0)) == 12
    narrow = [{**line, "vector": line["vector"][:4]} for line in item_lines]
    with pytest.raises(UserError, match=r"have 4 numbers, and those of the index .* 6"):
        index(write_lines("narrow.jsonl", narrow), str(tmp_path / "n"), codebooks_of=old.path)


def test_principal_components_are_kept_for_new_items(make, write_lines, item_lines, tmp_path):
    old = make(components=2, counters=3)
    assert old.vectors.shape == (12, 2)
    index(write_lines("same.jsonl", item_lines), str(tmp_path / "same"), codebooks_of=old.path)
    np.testing.assert_allclose(read_index(tmp_path / "same").vectors, old.vectors, atol=1e-6)


@pytest.mark.parametrize("name", ["coarse", "levels", "codes", "counters", "tokens", "shuffle"])
def test_settings_that_other_codebooks_decide_are_refused(name, tmp_path):
    values = {"tokens": "sentinels", "shuffle": True}
    with pytest.raises(UserError, match=f"takes {name} from that index"):
        index("items.jsonl", str(tmp_path / "x"), codebooks_of="i", **{name: values.get(name, 3)})


def test_repeated_queries_are_left_out_and_counted(make):
    line = {"item": "red star", "query": ["a star", "a  star "]}
    made = make(queries=[line])
    assert [record["prompt"] for record in made.training] == ["a star"]
    assert made.statistics["repeated_queries"] == 1
    assert made.statistics["items_without_queries"] == 11


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"item": "a", "vector": [1]}, {"item": "a", "vector": [2]}], ":2: the item 'a' is that of line 1"),
        ([{"item": True, "vector": [1]}], '"item" must be a text or an integer'),
        ([{"item": "a", "vector": [1]}, {"item": "b", "vector": [1, 2]}], "must be 1 numbers"),
        ([{"item": "a", "vector": "x"}], "must be a list of numbers"),
        ([{"item": "a", "vector": [10**400]}], "too large for a float"),
        ([{"item": "a", "vector": [1, 2]}], "1 distinct vectors in float32, which is fewer than the 3"),
        ([{"item": i, "vector": [i * 1e30, 2]} for i in range(4)], "or a number above 1e.15; scale"),
        ([{"item": i, "vector": [i * 1e-30, 0]} for i in range(4)], "differ by 3e-30 at most, which float32"),
    ],
)  # fmt: skip
def test_items_that_cannot_be_indexed_are_refused(make, lines, message):
    with pytest.raises(UserError, match=message):
        make(items=lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"item": "red star", "query": "  "}, ":1: the query is empty"),
        ({"item": "red star"}, ":1: has no query"),
        ({"item": "red star", "query": []}, ":1: has no query"),
        (
            {"item": "red star", "query": "\u200b"},
            r"queries.jsonl: the query '.*' is empty to the voc",
        ),
        ({"item": "moon", "query": "the moon"}, "is for the item 'moon', which"),
        ({"item": "red star", "query": "say <c1> now"}, "holds a token of an identifier"),
    ],
)
def test_queries_that_cannot_be_trained_on_are_refused(make, line, message):
    with pytest.raises(UserError, match=message):
        make(queries=[line])


def test_validation_queries_that_are_trained_on_are_counted_and_told(make, write_lines):
    given = [{"item": "red star", "query": ["A red star", "the red star"]}]
    made = make(validation_queries=write_lines("held_out.jsonl", given))
    assert made.statistics["validation_queries"] == 2
    assert made.statistics["validation_queries_of_training"] == 1
    assert "1 of 2 validation queries are training queries" in describe(made, "index")


def test_a_vocabulary_that_names_identifiers_already_is_refused(make):
    made = make()
    with pytest.raises(UserError, match="has the piece <c0> already"):
        make(name="again", vocabulary=f"{made.path}/vocabulary.model")
    with pytest.raises(UserError, match="the vocabulary is 'bytes'"):
        make(name="bytes", vocabulary="bytes")
    with pytest.raises(UserError, match="of the vocabulary 'bytes' have no text"):
        make(name="bytes", vocabulary="bytes", extra_ids=100, tokens="sentinels")


@pytest.mark.parametrize("name", ["codes", "counters", "coarse"])
def test_more_tokens_than_a_vocabulary_can_have_are_refused(make, name):
    with pytest.raises(UserError, match="at most 1048576 can be added"):
        make(**{name: 1 << 40})


def test_too_few_counters_are_refused(make):
    with pytest.raises(UserError, match="but 2 items share"):
        make(counters=1, coarse=11, codes=3)


def test_an_existing_folder_is_kept(make, tmp_path):
    (tmp_path / "precious").mkdir()
    with pytest.raises(UserError, match="is no index, so it is not replaced"):
        make(name="precious", overwrite=True)
    first = make()
    with pytest.raises(UserError, match="exists already"):
        make(coarse=2)
    assert read_index(first.path).fingerprint == first.fingerprint
    assert make(coarse=2, overwrite=True).fingerprint != first.fingerprint


def test_files_beside_an_index_are_not_deleted_with_it(copied, write_lines, item_lines, spm):
    def again():
        items = write_lines("items.jsonl", item_lines)
        index(items, str(copied), vocabulary=str(spm), coarse=3, overwrite=True)

    (copied / "run").mkdir()
    with pytest.raises(UserError, match="also has 'run'"):
        again()
    (copied / "run").rmdir()
    (copied / "index.json").write_text('{"name": "a page of another program"}')
    with pytest.raises(UserError, match="is no index"):
        again()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "'version' must be 1"),
        ({"arrays": {"../x": [1]}}, "'arrays' must be"),
        ({"blocks": [{"letter": "c", "size": 3, "first": 1}]}, "share no token"),
        ({"vocabulary": {"kind": "sentencepiece", "path": "/etc/passwd"}}, "the name of a file"),
    ],
)
def test_an_index_of_a_stranger_is_read_with_care(make, tmp_path, change, message):
    made = make()
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        read_index(made.path)


def test_arrays_of_a_stranger_are_not_unpickled(make, tmp_path):
    made = make()
    objects = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "index" / "identifiers.npy", objects, allow_pickle=True)
    with pytest.raises(UserError, match="never unpickled"):
        read_index(made.path)
    np.save(tmp_path / "index" / "identifiers.npy", np.zeros_like(made.identifiers))
    with pytest.raises(UserError, match="two items have the same identifier"):
        read_index(made.path)


@pytest.fixture
def copied(small_index, tmp_path):
    """The folder of a copy of the small index."""
    return Path(shutil.copytree(small_index.path, tmp_path / "copied"))


def test_a_function_that_an_index_names_is_called_only_if_the_user_names_it(
    copied, write_lines, item_lines, tmp_path
):
    path = copied / "index.json"
    content = json.loads(path.read_text())
    content["settings"]["features"] = "os:getenv"
    path.write_text(json.dumps(content))
    again = write_lines("again.jsonl", item_lines), str(tmp_path / "again")
    with pytest.raises(UserError, match=r"os:getenv.*is not called because a file names it"):
        index(*again, codebooks_of=str(copied))


def test_further_items_have_vectors_of_the_file_that_the_user_gives(make, write_lines, tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(12, 4)), rng.normal(size=(12, 4))
    np.save(tmp_path / "first.npy", first)
    np.save(tmp_path / "second.npy", second)
    old = make(features=f"array:{tmp_path}/first.npy", counters=9)
    more = write_lines("more.jsonl", [{"item": "new", "row": 3}])

    def extended(name, features=""):
        index(more, str(tmp_path / name), codebooks_of=old.path, features=features)
        return read_index(tmp_path / name)

    np.testing.assert_allclose(extended("same").vectors, first[3:4], rtol=1e-6)
    found = extended("other", f"array:{tmp_path}/second.npy")
    np.testing.assert_allclose(found.vectors, second[3:4], rtol=1e-6)
    assert found.settings["source"]["file"].endswith("second.npy")
    with pytest.raises(UserError, match="vectors of another kind have other clusters"):
        extended("wrong", "vector")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("items.jsonl", lambda text: "\n".join(text.split("\n")[::-1]), "some were exchanged"),
        ("items.jsonl", lambda text: text.replace("<u0>", "<u1>", 1), "not the text of its ident"),
        (
            "index.json",
            lambda text: text.replace('"fingerprint": "', '"fingerprint": "0'),
            "some w",
        ),
        (
            "index.json",
            lambda text: text.replace('"first": ', '"first": 1', 1),
            "not the text|share",
        ),
    ],
)
def test_an_index_whose_parts_were_exchanged_is_refused(copied, file, change, message):
    text = (copied / file).read_text()
    assert change(text) != text
    (copied / file).write_text(change(text))
    with pytest.raises(UserError, match=message):
        read_index(copied)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("codebooks", np.zeros((1, 3, 5))),
        ("codebooks", np.zeros((2, 3, 6))),
        ("codebooks", None),
        ("centroids", np.zeros((3, 4))),
        ("mean", np.zeros((1, 6))),
    ],
)
def test_codebooks_of_a_stranger_fit_the_identifiers_or_are_refused(
    copied, write_lines, item_lines, tmp_path, name, array
):
    content = json.loads((copied / "index.json").read_text())
    if array is None:
        del content["arrays"][name]
    else:
        content["arrays"][name] = list(array.shape)
        np.save(copied / f"{name}.npy", array.astype(np.float32))
    (copied / "index.json").write_text(json.dumps(content))
    again = write_lines("again.jsonl", item_lines), str(tmp_path / "again")
    with pytest.raises(UserError, match="make the index again"):
        index(*again, codebooks_of=str(copied))


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("items.jsonl", {"item": "a"}, "has no identifier"),
        ("train.jsonl", {"item": ["a"], "prompt": "a", "response": "b"}, ":1: a record has"),
        ("train.jsonl", {"item": "a", "response": "b"}, ":1: a record has"),
    ],
)
def test_lines_of_a_stranger_have_what_is_read_of_them(copied, file, line, message):
    path = copied / file
    _, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(line), *rest]) + "\n")
    with pytest.raises(UserError, match=message):
        read_index(copied)


def test_links_that_leave_the_folder_of_an_index_are_not_followed(copied, tmp_path):
    elsewhere = tmp_path / "elsewhere.jsonl"
    (copied / "train.jsonl").rename(elsewhere)
    (copied / "train.jsonl").symlink_to(elsewhere)
    with pytest.raises(UserError, match="it is not followed"):
        read_index(copied)
    (copied / "items.jsonl").unlink()
    with pytest.raises(UserError, match=r"items.jsonl cannot be read"):
        read_index(copied)
