"""HyPER: which pairs need a human label, and which do with a model's? `pandalm_two_sources`, and annotators with planted errors.

    python -m studies.label_routing --data <folder with pandalm_two_sources.annotated.*.jsonl> --workers 2
    python -m studies.label_routing_report

Every pair has a human label (majority of three) and one of GPT-3.5; pairs that either calls a tie are left out. A reward model is a
logistic Bradley-Terry head on TF-IDF features (100 singular directions) and the log of the number of words, so that 122 mixes take
seconds. Prompts are split into five folds: one is the test; of the others a quarter measures the mixes, and the rest is the pool to be
labelled. Five repetitions give 25 splits. `pandalm_by_pair` splits by pair and leaves the length out: the responses of a test pair then
occur in other pairs of the pool. The same command continues an interrupted study.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxalign.evaluation.statistics import spearman
from jaxalign.recipes.jobs import Job
from jaxalign.selection import label_routing as routing
from studies.command_line import run_study
from studies.text_features import accuracy, fit_heads, tfidf, word_features

FOLDS, REPETITIONS = 5, 5
SETTINGS = ("pandalm_by_pair", "pandalm", "complementary", "random_errors")
MIXES, SIMULATIONS = 120, 500
KINDS = ("linear", "quadratic")
RIDGE = 1.0
WIDTH, PENALTY = 100, 1.0
LEAKED = "quadratic gain half, mixes measured on the test"
# Of the planted annotators: how often a label is wrong where the annotator is unreliable, or anywhere if errors are random.
ERROR_RATE = 0.25


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns one job per setting, repetition and fold."""
    del folder
    return [
        Job(
            f"{setting}/repetition{repetition}/fold{fold}",
            functools.partial(_split, data, setting, repetition, fold),
        )
        for setting in SETTINGS
        for repetition in range(REPETITIONS)
        for fold in range(FOLDS)
    ]


def read_pairs(data: Path) -> list[dict[str, Any]]:
    """Returns the pairs that neither source calls a tie; `human` and `model` are 1 if the first response wins, else 0."""
    found = []
    for split in ("train", "dev"):
        path = data / f"pandalm_two_sources.annotated.{split}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            votes = [row["human_labels"].count(side) for side in (1, 2)]
            model = row["gpt35_label"]
            texts = [row["response_a"], row["response_b"]]
            # A few responses are not texts.
            usable = all(isinstance(text, str) for text in texts) and texts[0] != texts[1]
            if votes[0] != votes[1] and model in (1, 2) and usable:
                row |= {"human": float(votes[0] > votes[1]), "model": float(model == 1)}
                found.append(row)
    return found


def labels_of(
    setting: str, rows: list[dict[str, Any]], seed: int
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Returns the labels of the expensive and of the cheap source.

    'pandalm' and 'pandalm_by_pair': people and GPT-3.5. 'complementary': one source prefers the shorter response wherever the prompt is
    longer than the median, the other one elsewhere; where they are reliable they say what people say. 'random_errors': both are wrong
    at random.
    """
    truth = np.array([row["human"] for row in rows])
    if setting.startswith("pandalm"):
        return truth, np.array([row["model"] for row in rows])
    generator = np.random.default_rng((seed, 17))
    if setting == "random_errors":
        flips = generator.random((2, len(rows))) < ERROR_RATE
        one, other = np.abs(truth - flips)
        return one, other
    words = np.array([len(row["prompt"].split()) for row in rows])
    shorter = np.array([len(row["response_a"]) < len(row["response_b"]) for row in rows], float)
    long_prompt = words > np.median(words)
    return np.where(long_prompt, shorter, truth), np.where(long_prompt, truth, shorter)


@functools.lru_cache(maxsize=2)
def _differences(data: Path, *, with_length: bool) -> Float[np.ndarray, "pairs width"]:
    """Returns the features of the first response minus those of the second; the same for all jobs of a process."""
    texts = [row[side] for row in read_pairs(data) for side in ("response_a", "response_b")]
    features = tfidf(texts, word_features, width=WIDTH)
    if with_length:
        words = np.log([1 + len(text.split()) for text in texts])
        features = np.column_stack([features, words])
    return features[0::2] - features[1::2]


def _split(data: Path, setting: str, repetition: int, fold: int, job: Path) -> dict[str, Any]:
    del job
    rows = read_pairs(data)
    truth = np.array([row["human"] for row in rows])
    human, model = labels_of(setting, rows, repetition)
    by_pair = setting == "pandalm_by_pair"
    differences = _differences(data, with_length=not by_pair)
    pool, dev, test = _parts(rows, repetition, fold, by_pair=by_pair)
    tags, _ = routing.text_tags(
        *([rows[i][field] for i in pool] for field in ("prompt", "response_a", "response_b"))
    )
    budget = len(pool) // 2
    seed = repetition * FOLDS + fold

    def measured(masks: Bool[np.ndarray, "mixes pairs"], on: np.ndarray) -> np.ndarray:
        labels = np.where(masks, human[pool], model[pool])
        heads = fit_heads(differences[pool], labels, penalty=PENALTY)
        return accuracy(heads, differences[on], truth[on])

    mixes = routing.candidate_mixes(tags, MIXES, seed=seed)
    counts, performance = routing.mix_counts(mixes, tags), measured(mixes, dev)
    generator = np.random.default_rng((seed, 1))
    halves = [
        np.isin(np.arange(len(pool)), generator.permutation(len(pool))[:budget]) for _ in range(10)
    ]
    masks = {
        "human": mixes[0],
        "model": mixes[1],
        "best measured mix": mixes[int(np.argmax(performance))],
        **{f"random half {i}": mask for i, mask in enumerate(halves)},
    }
    regressions = {}
    for kind in KINDS:
        predicted = routing.cross_validated(counts, performance, kind=kind, ridge=RIDGE, seed=seed)
        regressions[kind] = {
            "spearman": spearman(predicted, performance),
            "rmse": float(np.sqrt(np.mean((predicted - performance) ** 2))),
        }
        fitted = routing.fit_performance_model(counts, performance, kind=kind, ridge=RIDGE)
        for size, name in ((budget, "half"), (None, "free")):
            masks[f"{kind} simulated {name}"] = routing.route_simulated(
                fitted, tags, size, simulations=SIMULATIONS, seed=1000 + seed
            )
            masks[f"{kind} gain {name}"] = routing.route_by_gain(fitted, tags, size)
    # What a report would show if the pairs that measure the mixes were those of the test.
    leaked = routing.fit_performance_model(
        counts, measured(mixes, test), kind=KINDS[-1], ridge=RIDGE
    )
    masks[LEAKED] = routing.route_by_gain(leaked, tags, budget)
    scores = dict(zip(masks, measured(np.stack(list(masks.values())), test), strict=True))
    drawn = [float(scores.pop(f"random half {i}")) for i in range(len(halves))]
    arms = {
        "human": float(scores.pop("human")),
        "model": float(scores.pop("model")),
        "random half": float(np.mean(drawn)),
        "random half and dev": _with_dev(differences, human, model, pool, dev, test, halves, truth),
        **{name: float(score) for name, score in scores.items()},
    }
    shares = {name: float(masks[name].mean()) for name in scores}
    return {
        "arms": arms,
        "shares": shares,
        "regressions": regressions,
        "performance_std": float(performance.std()),
        "agreement": float(np.mean(human == model)),
        "human_accuracy": float(np.mean(human == truth)),
        "model_accuracy": float(np.mean(model == truth)),
        "pairs": {"pool": len(pool), "dev": len(dev), "test": len(test)},
    }


def _with_dev(
    differences: np.ndarray,
    human: np.ndarray,
    model: np.ndarray,
    pool: np.ndarray,
    dev: np.ndarray,
    test: np.ndarray,
    halves: list[np.ndarray],
    truth: np.ndarray,
) -> float:
    """Trains on a random half and also on the labels that measured the mixes: routing pays for them too."""
    both = np.concatenate([pool, dev])
    labels = np.stack(
        [np.concatenate([np.where(mask, human[pool], model[pool]), truth[dev]]) for mask in halves]
    )
    heads = fit_heads(differences[both], labels, penalty=PENALTY)
    return float(accuracy(heads, differences[test], truth[test]).mean())


def _parts(
    rows: list[dict[str, Any]], repetition: int, fold: int, *, by_pair: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the indices of pool, dev and test; a prompt is in one of them only, unless pairs are split."""
    names = [str(i) if by_pair else row["prompt"] for i, row in enumerate(rows)]
    prompts = sorted(set(names))
    order = np.random.default_rng((repetition, 5)).permutation(len(prompts))
    place = {prompts[p]: rank for rank, p in enumerate(order)}
    ranks = np.array([place[name] for name in names])
    test = ranks % FOLDS == fold
    # A quarter of the other prompts, drawn anew for each fold.
    others = np.array(sorted(set(ranks[~test])))
    drawn = np.random.default_rng((repetition, fold, 6)).permutation(others)[: len(others) // 4]
    dev = np.isin(ranks, drawn)
    return np.flatnonzero(~test & ~dev), np.flatnonzero(dev), np.flatnonzero(test)


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "label_routing", jobs)


if __name__ == "__main__":
    main()
