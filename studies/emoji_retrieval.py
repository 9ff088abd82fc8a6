"""Generative retrieval of pictures by text (CART): what do the parts of the identifiers, the training and the search contribute?

    python -m studies.emoji_retrieval --data <folder with emoji/images.npz and emoji/captions.jsonl> --workers 2
    python -m studies.emoji_retrieval_report

A small T5 learns to write the identifiers of 1,197 emoji pictures for short English names. One arm changes one thing: where the identifiers
come from (picture, picture but shuffled, text), a part of the identifier (cluster, codes), the training (R-Drop), the network (fusion of
encoder layers), the search (trie). A lexical index and two towers are trained on the same queries. There are three tests: held-out names;
all names of held-out items, which enter the index without training; and clicks: does DRO-V on the retriever's own results help more than
more SFT? No hyperparameter is searched. The same command continues an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.retrieve import Training, retrieve
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.networks.decoding_hooks import Hooks
from jaxalign.networks.policy import Policy
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.retrieval.identifier_search import items_of, trie_of
from jaxalign.retrieval.index import index
from jaxalign.retrieval.index_folder import read_index
from jaxalign.retrieval.recall import padded, per_query
from jaxalign.runs.folder import Run
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies.command_line import MINI_T5, run_study
from studies.emoji_data import write_data
from studies.equal_footing import constant_loop

SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm: where the identifiers come from, and how the policy is trained.

    Attributes:
      features: `image` or `text`.
      settings: further settings of the index.
      r_drop: weight of R-Drop.
      fusion: fusion of encoder layers in the decoder.
    """

    features: str = "image"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    r_drop: float = 1.0
    fusion: str = "gated"


ARMS = {
    "image": Arm(),
    "image, shuffled": Arm(settings={"shuffle": True}),
    "text": Arm("text"),
    "without cluster": Arm(settings={"coarse": 0}),
    "without codes": Arm(settings={"levels": 0}),
    "without R-Drop": Arm(r_drop=0.0),
    "without fusion": Arm(fusion="last"),
}
# The arm `image` again, by an unconstrained search.
NO_TRIE = "without trie"
BASELINES = ("tf_idf", "two_tower")
# Old items are trained on; all items are indexed by the old codebooks.
NEW_ITEM_ARMS = ("image", "text")
CLICKS = {"DRO-V on clicks": "dro_v", "more SFT": "sft"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the study is.

    Attributes:
      pieces: of the vocabulary of texts.
      vocab_size: rows of the embedding table.
      clusters, levels, codes: of the identifiers.
      room: counters beyond those of the largest group, for new items.
      components: principal components of the pictures.
      updates, rows, learning_rate: of SFT. A row has about nine packed queries.
      beams: of the search.
      click_updates, click_samples: updates on clicks, and samples of a query whose items are clicked on or not.
      click_learning_rate: of DRO-V and of further SFT.
    """

    pieces: int = 1000
    vocab_size: int = 1536
    clusters: int = 32
    levels: int = 2
    codes: int = 32
    room: int = 32
    components: int = 64
    updates: int = 1000
    rows: int = 7
    learning_rate: float = 2e-3
    beams: int = 20
    click_updates: int = 200
    click_samples: int = 4
    click_learning_rate: float = 1e-4


SIZES = Sizes()
LENGTHS = {"inputs": 24, "targets": 8}
EXAMPLES_PER_ROW, ROW_LENGTHS = 9, {"inputs": 72, "targets": 48}
TEMPERATURE = 1.0  # DRO's tau, the paper's


def jobs(data: Path, folder: Path, sizes: Sizes = SIZES) -> list[Job]:
    """Returns the jobs: data, then per seed an index, a run and measures of every arm, the baselines, new items and clicks."""
    bound = functools.partial
    made = [Job("data", lambda job: write_data(data, job, sizes.pieces))]
    for seed in SEEDS:
        for arm in ARMS:
            made.append(
                Job(_name(arm, seed), bound(_arm, data, folder, sizes, arm, seed), ("data",))
            )
        image = _name("image", seed)
        made.append(Job(_name(NO_TRIE, seed), bound(_no_trie, folder, sizes, seed), (image,)))
        made.append(Job(f"baselines/seed{seed}", bound(_baselines, folder, sizes, seed), (image,)))
        for arm in NEW_ITEM_ARMS:
            name = f"new_items/{_name(arm, seed)}"
            made.append(Job(name, bound(_new_items, data, folder, sizes, arm, seed), ("data",)))
        clicks = f"clicks/seed{seed}"
        made.append(Job(clicks, bound(_clicks, folder, sizes, seed), (image,)))
        for arm in CLICKS:
            name = f"clicks/{_name(arm, seed)}"
            made.append(Job(name, bound(_after_clicks, folder, sizes, arm, seed), (clicks,)))
    return made


def _name(arm: str, seed: int) -> str:
    return f"{arm.replace(', ', '_').replace(' ', '_')}/seed{seed}"


def make_index(
    data: Path, folder: Path, sizes: Sizes, arm: str, seed: int, output: Path, prefix: str = ""
) -> dict[str, Any]:
    """Makes the index of an arm; `prefix` is "old_" to leave the held-out items out."""
    files = folder / "data"
    pictures = data / "emoji" if (data / "emoji").is_dir() else data
    of_images = ARMS[arm].features == "image"
    settings: dict[str, Any] = {
        "coarse": sizes.clusters,
        "levels": sizes.levels,
        "codes": sizes.codes,
        "features": f"pictures:path={pictures / 'images.npz'}" if of_images else f"array:{files / 'text.npy'}",
        "components": sizes.components if of_images else 0,
    }  # fmt: skip
    settings |= ARMS[arm].settings
    made = functools.partial(
        index,
        str(files / f"{prefix}items.jsonl"),
        str(output),
        vocabulary=str(files / "spm.model"),
        queries=str(files / f"{prefix}train.jsonl"),
        pseudo_queries=str(files / f"{prefix}pseudo.jsonl"),
        validation_queries=str(files / f"{prefix}test.jsonl"),
        seed=seed,
        overwrite=True,
        **settings,
    )
    statistics = made()["statistics"]
    if prefix:
        statistics = made(counters=statistics["largest_group"] + sizes.room)["statistics"]
    return statistics


def _policy(sizes: Sizes, fusion: str, dropout_rate: float = 0.1) -> Policy:
    config = MINI_T5.replace(
        vocab_size=sizes.vocab_size, dropout_rate=dropout_rate, encoder_fusion=fusion
    )
    return Policy(config, logits_chunk_size=None)


def _data(index_folder: Path, cache: Path, **changes: Any) -> TaskData:
    settings: dict[str, Any] = {
        "kind": "seq2seq",
        "train_file": str(index_folder / "train.jsonl"),
        "validation_file": str(index_folder / "validation.jsonl"),
    }
    return TaskData(
        task="emoji",
        cache_dir=str(cache),
        feature_lengths=LENGTHS,
        vocabulary=str(index_folder / "vocabulary.model"),
        duplicates="keep",
        pack=True,
        max_examples_per_row=EXAMPLES_PER_ROW,
        row_lengths=ROW_LENGTHS,
        # Names in other scripts are unknown to a vocabulary of English ones.
        max_rejected_fraction=0.2,
        eval_split="",
        **(settings | changes),
    )


def _sft(job: Path, sizes: Sizes, arm: Arm, seed: int) -> Path:
    """Trains a policy on the index of a job and returns its run folder."""
    train(
        model_dir=str(job / "run"),
        objective=objective_from_gin(
            ["sft_r_drop"], {"R_DROP_WEIGHT": arm.r_drop}, policy=_policy(sizes, arm.fusion)
        ),
        data=_data(job / "index", job / "cache"),
        optimizers={"policy": _optimizer(sizes.learning_rate, sizes.updates)},
        loop=constant_loop(sizes.updates),
        batch_size=sizes.rows,
        random_seed=seed,
    )
    return job / "run"


def _optimizer(learning_rate: float, updates: int) -> Any:
    return adamw(
        learning_rate,
        warmup_steps=max(updates // 10, 1),
        schedule="cosine",
        total_steps=updates,
        clip_norm=1.0,
    )


def measure(
    run: Path, index_folder: Path, queries: Path, output: Path, sizes: Sizes, **settings: Any
) -> dict[str, Any]:
    """Returns the measures of all methods, means over queries, and the recall at 1 to 10."""
    found = retrieve(
        str(run),
        str(index_folder),
        str(queries),
        str(output),
        num_beams=sizes.beams,
        bootstrap_samples=0,
        overwrite=True,
        **({"two_tower_steps": 0} | settings),
    )
    means = {
        method: {name: each["mean"] for name, each in measures.items()}
        for method, measures in found["measures"].items()
    }
    curves = _curves(output, read_index(index_folder).items.ids, list(means))
    return {
        method: {**measures, "curve": curves[method], "validity": found["validity"]}
        for method, measures in means.items()
    }


def _curves(output: Path, ids: Any, methods: list[str]) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    rows = {item: row for row, item in enumerate(ids)}
    right = np.array([rows[line["item"]] for line in lines])
    curves = {}
    for method in methods:
        key = "items" if method == "generative" else method
        ranked = padded([[rows[item] for item in line[key]] for line in lines], 10)
        places = 1 / np.maximum(per_query(ranked, right)["MRR"], 1e-9)
        curves[method] = [float(np.mean(places <= k + 0.5)) for k in range(1, 11)]
    return curves


def _arm(data: Path, folder: Path, sizes: Sizes, arm: str, seed: int, job: Path) -> dict[str, Any]:
    statistics = make_index(data, folder, sizes, arm, seed, job / "index")
    run = _sft(job, sizes, ARMS[arm], seed)
    test = folder / "data" / "test.jsonl"
    found = measure(run, job / "index", test, job / "found.jsonl", sizes)
    return {**found["generative"], "statistics": statistics}


def _no_trie(folder: Path, sizes: Sizes, seed: int, job: Path) -> dict[str, Any]:
    image = folder / _name("image", seed)
    job.mkdir(parents=True, exist_ok=True)
    test = folder / "data" / "test.jsonl"
    found = measure(
        image / "run", image / "index", test, job / "found.jsonl", sizes, constrained=False
    )
    return found["generative"]


def _baselines(folder: Path, sizes: Sizes, seed: int, job: Path) -> dict[str, Any]:
    image = folder / _name("image", seed)
    job.mkdir(parents=True, exist_ok=True)
    test = folder / "data" / "test.jsonl"
    found = measure(
        image / "run", image / "index", test, job / "found.jsonl", sizes,
        two_tower_steps=sizes.updates, seed=seed,
    )  # fmt: skip
    return {name: found[name] for name in BASELINES}


def _new_items(
    data: Path, folder: Path, sizes: Sizes, arm: str, seed: int, job: Path
) -> dict[str, Any]:
    """Trains without the held-out items, adds them to the index, and asks for them and for the others."""
    make_index(data, folder, sizes, arm, seed, job / "index", "old_")
    run = _sft(job, sizes, ARMS[arm], seed)
    files = folder / "data"
    index(
        str(files / "items.jsonl"),
        str(job / "grown"),
        codebooks_of=str(job / "index"),
        queries=str(files / "old_train.jsonl"),
        pseudo_queries=str(files / "old_pseudo.jsonl"),
        overwrite=True,
    )
    # Two towers know a picture that they were not trained on by its vector; their baseline reads the same queries as the policy.
    found = {
        name: measure(
            run, job / "grown", files / f"{queries}.jsonl", job / f"{name}.jsonl", sizes,
            two_tower_steps=sizes.updates, seed=seed,
        )
        for name, queries in (("new", "new_test"), ("old", "old_test"))
    }  # fmt: skip
    return found


def _clicks(folder: Path, sizes: Sizes, seed: int, job: Path) -> dict[str, Any]:
    """Samples items for the training queries from the retriever, and writes feedback 1 for the right ones and 0 for others."""
    image = folder / _name("image", seed)
    opened, run = read_index(image / "index"), Run(image / "run")
    trained, training = run.policy(), Training.of(opened)
    tokens, _ = generate_tokens(
        trained.network,
        trained.params,
        encoder_of(run).prompts(training.queries).tokens,
        DecodingSettings(
            max_target_length=len(opened.blocks) + 1, num_samples=sizes.click_samples, temperature=1.0
        ),
        batch_size=128,
        seed=seed,
        hooks=Hooks(allowed=trie_of(opened, trained.network.vocab_size)),
    )  # fmt: skip
    sampled = items_of(tokens, opened)
    texts = [fields["identifier"] for fields in opened.items.fields]
    job.mkdir(parents=True, exist_ok=True)
    right = sampled == np.array(training.items)[:, None]
    with (job / "clicks.jsonl").open("w", encoding="utf-8") as file:
        for row, query in enumerate(training.queries):
            for item, clicked in zip(sampled[row], right[row], strict=True):
                line = {"prompt": query, "response": texts[item], "feedback": int(clicked)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {"clicked": float(right.mean()), "queries": len(training.queries)}


def _after_clicks(folder: Path, sizes: Sizes, arm: str, seed: int, job: Path) -> dict[str, Any]:
    """Continues the run of the arm `image` by DRO-V on clicks or by SFT on the training queries, with equal updates."""
    image, clicks = folder / _name("image", seed), folder / f"clicks/seed{seed}" / "clicks.jsonl"
    on_clicks = CLICKS[arm] == "dro_v"
    changes = {"kind": "triplet", "train_file": str(clicks), "validation_file": None}
    train(
        model_dir=str(job / "run"),
        objective=objective_from_gin(
            [CLICKS[arm]],
            {"TEMPERATURE": TEMPERATURE} if on_clicks else {},
            policy=_policy(sizes, ARMS["image"].fusion, dropout_rate=0.0),
        ),
        data=_data(image / "index", job / "cache", **(changes if on_clicks else {})),
        optimizers={"policy": _optimizer(sizes.click_learning_rate, sizes.click_updates)},
        loop=constant_loop(sizes.click_updates),
        batch_size=sizes.rows,
        start_from=StartFrom(str(image / "run")),
        random_seed=seed,
    )
    test = folder / "data" / "test.jsonl"
    found = measure(job / "run", image / "index", test, job / "found.jsonl", sizes)["generative"]
    before = read_result(folder, _name("image", seed))
    assert before is not None
    return {**found, "before": {name: before[name] for name in ("R@1", "R@5", "R@10", "MRR")}}


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "emoji_retrieval", jobs)


if __name__ == "__main__":
    main()
