"""REAL: which two of K responses are worth a label? Easy, random, hard and length-based choices on two data sets, three embeddings.

    python -m studies.real_pair_selection --data <folder with rnnlg.seq2seq.* and gsm8k_solutions.triplets.*> --workers 2
    python -m studies.real_pair_selection_sentences --runs runs/real_pair_selection   # optional, in an environment of its own
    python -m studies.real_pair_selection --data ... --workers 2
    python -m studies.real_pair_selection_report

`rnnlg`: six sentences per dialogue act, drawn from those that people wrote for the 15 most similar acts; the reward is minus the share of
wrong slots. `gsm8k_solutions`: four real
solutions per question, right or wrong. Each prompt gets one pair. The annotator says "tie" if the rewards are equal (the label is spent),
else follows Bradley-Terry with slope 1.5 per standard deviation of the reward. A logistic reward model on text features, the same for all
arms, is fitted to the labels. The second command adds the vectors of a sentence encoder. The same command continues an interrupted study.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation import embeddings  # noqa: F401 (registers the annotator)
from jaxalign.annotation.annotators import get_annotator
from jaxalign.data import slots
from jaxalign.data.candidates import Annotation, Candidates, read_candidates, write_candidates
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.selection.selectors import get_selector
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from studies import rnnlg, rnnlg_data
from studies.command_line import run_study
from studies.text_features import accuracy, character_features, fit_heads, tfidf, word_features

SOURCES = ("rnnlg", "gsm8k_solutions")
LENGTHS = {
    "rnnlg": rnnlg.LENGTHS,
    "gsm8k_solutions": {"inputs": 192, "targets": 256},
}
# A short training suffices for an encoder whose states depend on the words.
SFT_STEPS = {"rnnlg": 300, "gsm8k_solutions": 150}
SEEDS = (0, 1, 2, 3, 4)
BUDGETS = (100, 200, 400, 800)
POOL, TEST = 900, 300
RESPONSES, SIMILAR_ACTS = 6, 15
SLOPE = 1.5
WIDTH, PENALTY = 100, 1.0
EMBEDDINGS = ("characters", "t5", "sentences")
MODES = ("easy", "hard", "centroid")
WITHOUT_EMBEDDING = ("random", "length")


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns the jobs: data, a small T5, candidates with embeddings, and the curves of every seed."""
    made = []
    for source in SOURCES:
        made += [
            Job(f"{source}/data", functools.partial(_prepare, source, data)),
            Job(
                f"{source}/candidates",
                functools.partial(_candidates, source, folder),
                (f"{source}/data",),
            ),
            Job(f"{source}/sft", functools.partial(_sft, source, folder), (f"{source}/data",)),
            Job(
                f"{source}/encoder",
                functools.partial(_encode, source, folder),
                (f"{source}/sft", f"{source}/candidates"),
            ),
        ]
    for embedding in EMBEDDINGS:
        for source in SOURCES:
            if embedding == "sentences" and not vector_file(folder, source, embedding).exists():
                continue
            needs = f"{source}/{'encoder' if embedding == 't5' else 'candidates'}"
            made += [
                Job(
                    f"{source}/{embedding}/seed{seed}",
                    functools.partial(_curves, source, folder, embedding, seed),
                    (needs,),
                )
                for seed in SEEDS
            ]
    # What needs no trained network comes first.
    return sorted(made, key=lambda job: job.name.endswith("/sft"))


def vector_file(folder: Path, source: str, embedding: str) -> Path:
    """Returns the file with the vectors of an encoder, one per response in the order of the candidates."""
    return folder / source / f"{embedding}.npy"


def _prepare(source: str, data: Path, job: Path) -> dict[str, Any]:
    if source == "rnnlg":
        return rnnlg_data.prepare(data, job, rnnlg.VOCAB_SIZE)
    for split in ("train", "dev"):
        path = data / f"gsm8k_solutions.triplets.{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        records = [Record(row["prompt"], (row["response"],), (row["feedback"],)) for row in rows]
        name = {"train": "train", "dev": "validation"}[split]
        write_jsonl(records, str(job / f"{name}.jsonl"), "triplet")
        if split == "train":
            texts = dict.fromkeys(text for row in rows for text in (row["prompt"], row["response"]))
            train_sentencepiece(texts, str(job / "spm.model"), vocab_size=rnnlg.VOCAB_SIZE)
    return {}


def _sft(source: str, folder: Path, job: Path) -> dict[str, Any]:
    """Fine-tunes a T5 of a million parameters, whose encoder embeds the responses."""
    steps = SFT_STEPS[source]
    prepared = folder / source / "data"
    packed = (
        {"inputs": 160, "targets": 128} if source == "rnnlg" else {"inputs": 384, "targets": 512}
    )
    summary = train(
        model_dir=str(job / "run"),
        objective=SFT(policy=rnnlg.POLICY),
        data=TaskData(
            task=source,
            cache_dir=str(job / "cache"),
            feature_lengths=LENGTHS[source],
            vocabulary=str(prepared / "spm.model"),
            train_file=str(prepared / "train.jsonl"),
            validation_file=str(prepared / "validation.jsonl"),
            kind="seq2seq" if source == "rnnlg" else "triplet",
            duplicates="keep",
            max_rejected_fraction=0.2,
            pack=True,
            row_lengths=packed,
        ),
        optimizers={
            "policy": adamw(
                2e-3, warmup_steps=100, schedule="cosine", total_steps=steps, clip_norm=1.0
            )
        },
        loop=LoopConfig(
            train_steps=steps,
            log_period=50,
            eval_period=0,
            checkpoint=CheckpointPolicy(period=steps, keep_latest=1),
            progress=False,
        ),
        batch_size=16 if source == "rnnlg" else 4,
        random_seed=0,
    )
    return {"train": summary["train"]}


def _candidates(source: str, folder: Path, job: Path) -> dict[str, Any]:
    """Writes candidates with rewards, the embeddings of characters, and the features of the reward model."""
    if source == "rnnlg":
        prompts, responses = similar_sentences(folder / source / "data" / "train.jsonl")
        rewards = [
            np.array([rnnlg_data.feedback(act, text) for text in group])
            for act, group in zip(prompts, responses, strict=True)
        ]
    else:
        groups: dict[str, list[tuple[str, float]]] = {}
        for name in ("train", "validation"):
            path = folder / source / "data" / f"{name}.jsonl"
            for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                groups.setdefault(row["prompt"], []).append((row["response"], row["feedback"]))
        prompts = list(groups)
        responses = [[text for text, _ in group] for group in groups.values()]
        rewards = [np.array([right for _, right in group]) for group in groups.values()]
    texts = [text for group in responses for text in group]
    ends = np.cumsum([len(group) for group in responses])[:-1]
    vectors = {
        "characters": tfidf(texts, character_features, width=WIDTH),
        # Not an embedding to select by, but what the reward model reads.
        "features": tfidf(_with_prompts(prompts, responses), str.split, width=WIDTH),
    }
    annotations = {"reward": Annotation("scores", rewards)} | {
        name: Annotation("vectors", np.split(np.round(array, 5), ends))
        for name, array in vectors.items()
    }
    found = Candidates(prompts, responses, annotations, path=str(job / "candidates.jsonl"))
    write_candidates(job / "candidates.jsonl", found)
    return {
        "prompts": len(prompts),
        "reward_std": float(np.concatenate(rewards).std()),
        "mean_reward": float(np.concatenate(rewards).mean()),
        "prompts_with_equal_rewards": float(np.mean([np.ptp(each) == 0 for each in rewards])),
    }


def similar_sentences(path: Path) -> tuple[list[str], list[list[str]]]:
    """Returns acts, and for each act sentences that people wrote for it or for acts that share many of its slots."""
    sentences: dict[str, list[str]] = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if slots.counted_slots(slots.parse_act(row["prompt"])):
            sentences.setdefault(row["prompt"], []).append(row["response"])
    acts = list(sentences)
    described = [frozenset(slots.parse_act(act).slots) for act in acts]
    names = {slot: i for i, slot in enumerate(sorted(set().union(*described)))}
    table = np.zeros((len(acts), len(names)), np.float32)
    for row, found in enumerate(described):
        table[row, [names[slot] for slot in found]] = 1
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(acts))[: POOL + TEST]
    shared = table[chosen] @ table.T
    similarity = 2 * shared / (table[chosen].sum(axis=1)[:, None] + table.sum(axis=1))
    prompts, responses = [], []
    for act, row in zip(chosen, similarity, strict=True):
        near = np.argsort(-row, kind="stable")[:SIMILAR_ACTS]
        texts = sorted({text for i in near for text in sentences[acts[i]]})
        drawn = generator.permutation(len(texts))[:RESPONSES]
        prompts.append(acts[act])
        responses.append([texts[i] for i in drawn])
    return prompts, responses


def _encode(source: str, folder: Path, job: Path) -> dict[str, Any]:
    """Writes the vectors of the T5's encoder."""
    del job
    candidates = _read(folder / source / "candidates" / "candidates.jsonl")
    annotator = get_annotator(f"embedding:policy={folder / source / 'sft' / 'run'}")
    vectors = np.concatenate(list(annotator.annotate(candidates)))
    np.save(vector_file(folder, source, "t5"), vectors.astype(np.float32))
    return {"texts": len(vectors)}


def _with_prompts(prompts: list[str], responses: list[list[str]]) -> list[str]:
    """Returns the response's words and word pairs, and which words of the prompt it has and lacks, one text per response."""
    found = []
    for prompt, group in zip(prompts, responses, strict=True):
        wanted = set(word_features(prompt.replace("=", " ")))
        for text in group:
            has = word_features(text)
            single = set(has)
            parts = [f"r:{f}" for f in has]
            parts += [f"{'has' if f in single else 'lacks'}:{f}" for f in wanted if " " not in f]
            found.append(" ".join(part.replace(" ", "_") for part in parts))
    return found


def _curves(source: str, folder: Path, embedding: str, seed: int, job: Path) -> dict[str, Any]:
    """Selects, labels and fits for every mode that needs this embedding; the others are part of the first embedding's job."""
    del job
    candidates = _read(folder / source / "candidates" / "candidates.jsonl")
    if embedding != "characters":
        vectors = np.load(vector_file(folder, source, embedding), allow_pickle=False)
        ends = np.cumsum([len(group) for group in candidates.responses])[:-1]
        candidates = candidates.with_annotation(
            embedding, Annotation("vectors", np.split(np.asarray(vectors, float), ends))
        )
    order = np.random.default_rng((seed, 1)).permutation(len(candidates))
    test = candidates.take(order[POOL : POOL + TEST].tolist())
    pool = candidates.take(order[:POOL].tolist())
    deviation = np.concatenate(list(candidates.annotations["reward"].values)).std()
    modes = (*MODES, *(WITHOUT_EMBEDDING if embedding == EMBEDDINGS[0] else ()))
    held_out = _differing_pairs(test, seed)
    return {
        mode: _arm(pool, f"similar_pairs:mode={mode},vectors={embedding},seed={seed}", deviation, held_out, seed)
        for mode in modes
    }  # fmt: skip


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Candidates:
    return read_candidates(path)


def _arm(
    pool: Candidates,
    selector: str,
    deviation: float,
    held_out: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> dict[str, Any]:
    lines = get_selector(selector)(pool).lines
    rewards = np.array([line["annotations"]["reward"]["scores"] for line in lines])
    features = np.array([line["annotations"]["features"]["vectors"] for line in lines])
    margins = (rewards[:, 0] - rewards[:, 1]) / deviation
    differs = margins != 0
    wrong = 1 / (1 + np.exp(SLOPE * np.abs(margins[differs])))
    labels = np.random.default_rng((seed, 2)).random(len(lines)) < 1 / (
        1 + np.exp(-SLOPE * margins)
    )
    differences = features[:, 0] - features[:, 1]
    accuracies = {}
    for budget in BUDGETS:
        kept = np.flatnonzero(differs[:budget])
        heads = fit_heads(differences[kept], labels[kept][None].astype(float), penalty=PENALTY)
        accuracies[str(budget)] = float(accuracy(heads, *held_out)[0])
    return {
        "pairs": len(lines),
        "differing": float(differs.mean()),
        "label_error": float(wrong.mean()),
        "margin": float(np.abs(margins[differs]).mean()),
        "similarity": float(np.mean([line.get("similarity", np.nan) for line in lines])),
        "length_difference": float(np.mean([line["length_difference"] for line in lines])),
        "accuracy": accuracies,
    }


def _differing_pairs(test: Candidates, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns features and true labels of one random pair with different rewards of every held-out prompt that has one."""
    generator = np.random.default_rng((seed, 3))
    differences, labels = [], []
    for rewards, features in zip(
        test.annotations["reward"].values, test.annotations["features"].values, strict=True
    ):
        first, second = np.nonzero(rewards[:, None] != rewards[None])
        if len(first):
            pair = int(generator.integers(len(first)))
            i, j = first[pair], second[pair]
            differences.append(features[i] - features[j])
            labels.append(float(rewards[i] > rewards[j]))
    return np.array(differences), np.array(labels)


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "real_pair_selection", jobs)


if __name__ == "__main__":
    main()
