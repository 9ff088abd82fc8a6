"""A tokenizer.json as a vocabulary: the library's ids, special tokens, and its way through seqio, caches and networks' folders."""

import json
import sys

import numpy as np
import pytest

from jaxalign import hub
from jaxalign.data import cache
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.tokenization import Limits
from jaxalign.data.tokenizer_vocabulary import TokenizerVocabulary
from jaxalign.data.vocabularies import (
    SentencePieceVocabulary,
    vocabulary_from_dict,
    vocabulary_from_spec,
)
from jaxalign.errors import UserError
from jaxalign.interop import tokenizer_files

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "golden lion serves cheap thai food",
    "is it kid-friendly? naïve café 日本語 ☃",
    " leading,  double\tand\nlines ",
    "a<end_of_turn>b <end_of_turn>",
    "",
]


def save(folder, special, model, *, before=(), after=(), **parts):
    """A tokenizer trained on the texts, with tokens that its post-processor puts before and after each text."""
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=120,
        special_tokens=[*special, "<end_of_turn>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS[:1] * 20 + TEXTS[1:2], trainer)
    if before or after:
        ids = [(token, tokenizer.token_to_id(token)) for token in (*before, *after)]
        form = " ".join([*before, "$A", *after])
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=form, special_tokens=ids
        )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    folder.mkdir()
    content = json.loads(tokenizer.to_str())
    if model.byte_fallback:
        vocab = content["model"]["vocab"]
        vocab |= {f"<0x{i:02X}>": len(vocab) + i for i in range(256)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The form of Gemma's tokenizer (bytes for what is unknown, BOS before a text), and of one that ends texts with EOS."""
    root = tmp_path_factory.mktemp("tokenizers")
    replaced = tokenizers.normalizers.Replace(" ", "▁")
    decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    bpe = tokenizers.models.BPE
    gemma = ["<pad>", "<eos>", "<bos>", "<unk>"]
    return {
        "gemma": save(
            root / "gemma",
            gemma,
            bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
            before=["<bos>"],
            normalizer=replaced,
            decoder=decoder,
        ),
        "bytes": save(
            root / "bytes",
            ["<pad>", "</s>"],
            bpe(),
            after=["</s>"],
            pre_tokenizer=tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoder=tokenizers.decoders.ByteLevel(),
        ),
    }


@pytest.mark.parametrize("name", ["gemma", "bytes"])
def test_ids_and_texts_are_those_of_the_library(files, name):
    vocabulary = vocabulary_from_spec(files[name])
    library = tokenizers.Tokenizer.from_file(files[name])
    library.no_truncation()
    library.no_padding()
    ids = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [vocabulary.encode(text) for text in TEXTS] == ids
    assert vocabulary.encode_batch(TEXTS) == ids
    decoded = [library.decode(each, skip_special_tokens=False) for each in ids]
    assert [vocabulary.decode(each) for each in ids] == decoded
    assert vocabulary.decode_batch([[*each, 1, 5, 5] for each in ids]) == decoded
    assert vocabulary.decode(np.array([0, *ids[0], 1, 7, 10**9, -1])) == decoded[0]
    # A prompt has the tokens that the library puts around it, and EOS.
    whole = [*vocabulary.prompt_prefix, *ids[0], 1]
    assert whole in (library.encode(TEXTS[0]).ids, [*library.encode(TEXTS[0]).ids, 1])
    expected = {"gemma": ((2,), 3), "bytes": ((), -1)}[name]
    assert (vocabulary.prompt_prefix, vocabulary.unk_id) == expected
    assert vocabulary.size == library.get_vocab_size()


def test_a_folder_or_an_address_stands_for_its_tokenizer(files, tmp_path, monkeypatch):
    folder = files["gemma"].removesuffix("/tokenizer.json")
    assert vocabulary_from_spec(folder) == vocabulary_from_spec(files["gemma"])
    monkeypatch.setattr(hub, "_snapshot", lambda repository, patterns: folder)
    assert vocabulary_from_spec("hf://someone/model") == vocabulary_from_spec(files["gemma"])
    with pytest.raises(UserError, match="holds no vocabulary"):
        vocabulary_from_spec(str(tmp_path))


def test_prompts_begin_with_bos_and_responses_do_not(files):
    vocabulary = TokenizerVocabulary(files["gemma"])
    ids = vocabulary.encode(TEXTS[0])
    for side, kept in (("truncate", ids[:4]), ("truncate_left", ids[-4:])):
        encoder = TextEncoder(vocabulary, Limits(6, 6, side))
        assert encoder.prompts([TEXTS[0]]).tokens == [[2, *kept, 1]]
        assert encoder.responses([TEXTS[0]]).tokens == [[*ids[:5], 1]]


def test_seqio_gives_the_same_ids(files):
    seqio = pytest.importorskip("seqio")
    import tensorflow as tf

    ours = TokenizerVocabulary(files["gemma"])
    theirs = ours.to_seqio()
    assert isinstance(theirs, seqio.Vocabulary)
    assert theirs == TokenizerVocabulary(files["gemma"]).to_seqio()
    assert (theirs.vocab_size, theirs.eos_id, theirs.bos_id, theirs.pad_id) == (ours.size, 1, 2, 0)
    for text in TEXTS:
        assert list(theirs.encode(text)) == ours.encode(text)
        assert theirs.encode_tf(tf.constant(text)).numpy().tolist() == ours.encode(text)
    ids = ours.encode(TEXTS[1])
    assert theirs.decode([*ids, 1, 5]) == ours.decode(ids)
    batch = tf.constant([[*ids, 1, 5], [1, *ids, 5]])
    assert [text.decode() for text in theirs.decode_tf(batch).numpy()] == [ours.decode(ids), ""]


def test_a_seqio_task_gives_the_tokens_of_the_file_itself(files, write_lines, tmp_path):
    seqio = pytest.importorskip("seqio")
    from jaxalign.data import tasks

    path = write_lines(
        [{"prompt": f"thai food {i}", "response": "golden lion", "feedback": i} for i in range(30)]
    )
    try:
        tasks.register_jsonl_task("mine", "triplet", {"train": path}, vocabulary=files["gemma"])
        made = cache.cache("mine", str(tmp_path / "seqio"))
    finally:
        seqio.TaskRegistry.reset()
    direct = cache.cache("mine", str(tmp_path / "d"), train_file=path, vocabulary=files["gemma"])
    assert made.fingerprint == direct.fingerprint
    assert made.vocabulary == direct.vocabulary


def test_a_cache_holds_the_tokenizer_and_its_tokens(files, write_lines, tmp_path):
    path = write_lines(
        [{"prompt": f"thai food {i}", "response": "golden lion", "feedback": 1} for i in range(30)]
    )
    folder = str(tmp_path / "cache")
    options = {"train_file": path, "splits": ["train"]}
    made = cache.cache("t", folder, vocabulary=files["gemma"], **options)
    found = TaskCache(folder)
    vocabulary = found.vocabulary()
    assert vocabulary == TokenizerVocabulary(files["gemma"])
    assert made.vocabulary["path"] == "tokenizer.json"
    example = found.split("train")[0]
    assert example.inputs.tolist() == [2, *vocabulary.encode(example.prompt), 1]
    assert example.target(0).tolist() == [*vocabulary.encode("golden lion"), 1]
    assert found.metadata.noted("changed_prompts") == 0
    other = cache.cache("t", str(tmp_path / "other"), vocabulary=files["bytes"], **options)
    assert other.request != made.request and other.fingerprint != made.fingerprint
    other_file = tmp_path / "other" / "tokenizer.json"
    (tmp_path / "cache" / "tokenizer.json").write_bytes(other_file.read_bytes())
    with pytest.raises(UserError, match="is not the one this data was made with"):
        vocabulary_from_dict(made.vocabulary, folder)


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (["<unk>", "<s>", "</s>"], "must be PAD and EOS"),
        (["<pad>", "<s>", "</s>"], "must be PAD and EOS"),
        ([], "must be PAD and EOS"),
    ],
)
def test_a_tokenizer_without_pad_0_and_eos_1_is_refused(tmp_path, special, message):
    path = save(tmp_path / "t", special, tokenizers.models.BPE())
    with pytest.raises(UserError, match=message):
        TokenizerVocabulary(path)


def test_other_files_are_refused_in_one_line(files, tmp_path, monkeypatch):
    after = save(
        tmp_path / "t", ["<pad>", "</s>", "[SEP]"], tokenizers.models.BPE(), after=["[SEP]"]
    )
    with pytest.raises(UserError, match="puts other tokens after a text than EOS"):
        TokenizerVocabulary(after)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"x\.json is no tokenizer\.json of the library"):
        TokenizerVocabulary(tmp_path / "x.json")
    with pytest.raises(UserError, match="extra_ids is 0 or 0, not 100"):
        TokenizerVocabulary(files["gemma"], 100)
    config = tmp_path / "t" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "[SEP]"}))
    with pytest.raises(UserError, match="must be PAD and EOS"):
        TokenizerVocabulary(after)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'jaxalign\[tokenizers\]'"):
        TokenizerVocabulary(files["gemma"])


@pytest.mark.parametrize("name", ["gemma", "bytes"])
def test_an_exported_tokenizer_puts_our_tokens_around_a_text_and_is_read_back(
    files, tmp_path, name
):
    vocabulary = TokenizerVocabulary(files[name])
    tokenizer_files.write(str(tmp_path), vocabulary, {"model_max_length": 64})
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.no_truncation()
    wanted = [[*vocabulary.prompt_prefix, *vocabulary.encode(text), 1] for text in TEXTS]
    assert [library.encode(text).ids for text in TEXTS] == wanted
    recorded = tokenizer_files.read(str(tmp_path))
    assert recorded.agrees_with(RecordedVocabulary(vocabulary.to_dict()))
    other = RecordedVocabulary(
        TokenizerVocabulary(files[{"gemma": "bytes"}.get(name, "gemma")]).to_dict()
    )
    assert not recorded.agrees_with(other)


def test_a_sentencepiece_model_and_the_tokenizer_made_of_it_agree(small_vocabulary, tmp_path):
    model = SentencePieceVocabulary(small_vocabulary, 100)
    tokenizer_files.write(str(tmp_path), model, {})
    made = TokenizerVocabulary(tmp_path / "tokenizer.json")
    assert (made.size, made.sentinels) == (model.size, 100)
    assert RecordedVocabulary(made.to_dict()).agrees_with(RecordedVocabulary(model.to_dict()))
    fewer = RecordedVocabulary(SentencePieceVocabulary(small_vocabulary, 10).to_dict())
    assert not RecordedVocabulary(made.to_dict()).agrees_with(fewer)


def test_a_record_with_the_text_of_eos_or_pad_is_rejected(files, tmp_path):
    """The tokenizer reads it as the token: the model would learn to go on behind its own end."""
    data = tmp_path / "data.jsonl"
    rows = [("golden lion", "thai food"), ("golden", "thai<eos>food"), ("a<pad>b", "cheap")]
    lines = [json.dumps({"prompt": prompt, "response": text}) + "\n" for prompt, text in rows]
    data.write_text("".join(lines))
    metadata = cache.cache(
        "m",
        str(tmp_path / "c"),
        kind="seq2seq",
        train_file=str(data),
        validation_file=str(data),
        splits=["train"],
        vocabulary=files["gemma"],
        max_rejected_fraction=1.0,
    )
    assert metadata.rejected["train"] == {"control_tokens": 2}
