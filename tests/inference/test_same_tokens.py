"""A run that keeps the end of its prompts is generated from, evaluated and judged with the tokens of its cache."""

import dataclasses

import pytest

from jaxalign.annotation import judges
from jaxalign.data import cache
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.vocabularies import ByteVocabulary
from jaxalign.evaluation.evaluate import evaluate
from jaxalign.inference import rows, sampling
from jaxalign.inference.generate import generate
from jaxalign.runs.folder import Run

LENGTHS = {"inputs": 12, "targets": 8}


@pytest.fixture
def run(fake_runs, monkeypatch):
    """The stand-in runs, with bytes as tokens and the recorded rule `truncate_left`."""
    initialise = Run.__init__

    def changed(run, path, step=None):
        initialise(run, path, step)
        run.vocabulary = ByteVocabulary()
        run.description = dataclasses.replace(
            run.description, feature_lengths=LENGTHS, long_prompts="truncate_left"
        )

    monkeypatch.setattr(Run, "__init__", changed)
    return "run1"


@pytest.fixture
def seen(monkeypatch):
    """Prompts and responses that networks were given, by what they were asked to do."""
    prompts = {"decode": set(), "score": set(), "rewards": set()}
    targets = {"score": set(), "rewards": set()}
    decoder, jitted = sampling.decoder, rows.jitted

    def kept(tokens):
        found = {tuple(int(token) for token in row if token) for row in tokens}
        return found - {(), (1,)}  # rows that fill a batch

    def watched_decoder(policy, settings, batch_size, hooks):
        decode = decoder(policy, settings, batch_size, hooks)

        def watched(params, tokens, indices, key):
            prompts["decode"] |= kept(tokens)
            return decode(params, tokens, indices, key)

        return watched

    def watched_jitted(network, method):
        compute = jitted(network, method)

        def watched(params, batch):
            prompts[method] |= kept(batch["encoder_input_tokens"])
            targets[method] |= kept(batch["decoder_target_tokens"])
            return compute(params, batch)

        return watched

    monkeypatch.setattr(sampling, "decoder", watched_decoder)
    monkeypatch.setattr(rows, "jitted", watched_jitted)
    return prompts, targets


def test_prompts_keep_their_end_everywhere(run, seen, write_lines, tmp_path, capsys):
    records = [
        {"prompt": f"{'the beginning of a dialogue' if i % 2 else ''} {i}", "response": f"r{i}"}
        for i in range(9)
    ]
    records = [record | {"feedback": i % 3} for i, record in enumerate(records)]
    path = write_lines("data.jsonl", records)
    folder = str(tmp_path / "cache")
    cache.cache(
        "mine",
        folder,
        train_file=path,
        validation_file=path,
        splits=["train"],
        max_input_length=12,
        max_target_length=8,
        long_prompts="truncate_left",
    )
    examples = list(TaskCache(folder).split("train"))
    wanted = {tuple(example.inputs.tolist()) for example in examples}
    responses = {tuple(example.targets.tolist()) for example in examples}
    prompts, targets = seen

    def used(*methods):
        found = [set(prompts[method]) for method in methods]
        for names in (prompts, targets):
            for tokens in names.values():
                tokens.clear()
        return found

    summary = generate(run, path, str(tmp_path / "out.jsonl"))
    assert used("decode") == [wanted]
    assert summary["cut_prompts"] == pytest.approx(4 / 9)
    options = {"judges": ["reward_model:run1"], "bootstrap": 50, "kl_samples": 1}
    results = []
    for source in (path, folder):
        results.append(
            evaluate([f"a={run}"], source, f"{source}_evaluation", split="train", **options)
        )
        assert responses <= targets["score"]
        assert used("decode", "score", "rewards") == [wanted, wanted, wanted]
    for one in results:
        one["settings"].pop("prompts")
        # A cache has a split to fit the baseline on, a file needs another one.
        one["policies"]["a"]["ranking"].pop("TF-IDF linear", None)
    assert results[0]["policies"] == results[1]["policies"]
    assert results[0]["settings"] == results[1]["settings"]
    report = results[0]["policies"]["a"]
    assert report["cut_prompts"] == summary["cut_prompts"]
    texts = [record["prompt"] for record in records]
    judges.get_judge("reward_model:run1").score(texts, ["r"] * len(texts))
    assert used("rewards") == [wanted]
    told = capsys.readouterr().err
    assert told.count("4 of 9 prompts were cut at their beginning (max_input_length=12") >= 4
    # The flag wins over what the run recorded.
    generate(run, path, str(tmp_path / "other.jsonl"), long_prompts="truncate")
    (other,) = used("decode")
    assert other != wanted and len(other & wanted) == 5
