"""A folder that is exported works in transformers: its AutoTokenizer gives our ids, and greedy generation our tokens and texts."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.data.vocabularies import vocabulary_from_spec
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.interop.checkpoint_sources import HUGGING_FACE, RUN
from jaxalign.interop.convert import convert
from jaxalign.networks.config import T5Config
from jaxalign.runs.folder import Run

# Another interpreter whose transformers is compared with, so that versions can take turns.
PYTHON = os.environ.get("TRANSFORMERS_PYTHON", sys.executable)
LENGTH = 12
TEXTS = ["golden lion serves cheap thai food", "is it near the river?", "the  golden river"]
_GENERATE = """
import json, sys
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.pipelines import SUPPORTED_TASKS, pipeline
texts, length, folders = json.load(open(sys.argv[1]))
found = {}
for name, folder in folders.items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**{k: batch[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=length, do_sample=False)
    found[name] = {"ids": [tokenizer(text)["input_ids"] for text in texts], "tokens": tokens.tolist()}
    found[name]["texts"] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    if "text2text-generation" in SUPPORTED_TASKS:
        # Transformers 5 has no such pipeline.
        answer = pipeline("text2text-generation", model=folder)
        found[name]["piped"] = [
            each["generated_text"]
            for each in answer(texts, max_new_tokens=length, do_sample=False, num_beams=1)
        ]
json.dump(found, open(sys.argv[2], "w"))
"""


def write_tokenizer(path):
    """A tokenizer.json of Gemma's form, which puts BOS before a text and no EOS behind it."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.decoder = tokenizers.decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(path))
    return str(path)


def test_ids_generated_tokens_and_texts_are_ours(make_checkpoint, values, tmp_path):
    tried = subprocess.run([PYTHON, "-c", "import torch, transformers"], capture_output=True)
    if tried.returncode:
        pytest.skip("transformers is not installed (pip install jaxalign[transformers])")
    model = str(tmp_path / "spiece.model")
    train_sentencepiece(TEXTS * 20, model, model_type="unigram", vocab_size=30)
    given = {
        "sentencepiece": {"vocabulary": model, "extra_ids": 4},
        "bytes": {"vocabulary": "bytes", "extra_ids": 125},
    }
    if importlib.util.find_spec("tokenizers") is not None:
        given["tokenizer"] = {"vocabulary": write_tokenizer(tmp_path / "tokenizer.json")}
    runs, folders = {}, {}
    for name, options in given.items():
        config = T5Config(
            vocab_size=vocabulary_from_spec(
                options["vocabulary"], options.get("extra_ids", 0)
            ).size,
            emb_dim=8,
            num_heads=2,
            head_dim=3,
            mlp_dim=12,
            num_encoder_layers=2,
            num_decoder_layers=2,
        )
        lengths = {"max_input_length": 64, "max_target_length": LENGTH}
        runs[name] = make_checkpoint(RUN, values(config), config, name, **options, **lengths)
        folders[name] = str(tmp_path / f"{name}-exported")
        convert(checkpoint=runs[name], output=folders[name], to=HUGGING_FACE)
    (tmp_path / "in.json").write_text(json.dumps([TEXTS, LENGTH, folders]))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    places = [str(tmp_path / "in.json"), str(tmp_path / "out.json")]
    subprocess.run([PYTHON, "-c", _GENERATE, *places], check=True, timeout=600, env=environment)
    found = json.loads((tmp_path / "out.json").read_text())
    for name, path in runs.items():
        policy = Run(path).policy()
        encoder = encoder_of(policy)
        prompts = encoder.prompts(TEXTS).tokens
        assert found[name]["ids"] == prompts, name
        tokens, _ = generate_tokens(
            policy.network, policy.params, prompts, DecodingSettings(max_target_length=LENGTH)
        )
        ours = [[int(token) for token in group[0]] for group in tokens]
        theirs = [row[1:] for row in found[name]["tokens"]]
        assert [_whole(row) for row in theirs] == [_whole(row) for row in ours], name
        assert any(found[name]["texts"]), name
        assert found[name].get("piped", found[name]["texts"]) == found[name]["texts"]


def _whole(tokens):
    """The tokens of a response up to EOS, without padding."""
    return tokens[: tokens.index(1)] if 1 in tokens else [token for token in tokens if token]
