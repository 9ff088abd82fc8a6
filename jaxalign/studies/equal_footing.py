"""Every method on the same feedback, from its own gin file, with the same budget: three seeds, two tasks.

    python -m jaxalign.studies.equal_footing --data <folder with the JSON Lines files> --workers 2

Each method has two hyperparameters, the learning rate and the one that matters most for it, with two values each (or four learning
rates): four runs of one seed are judged on a validation split, the best setting is trained with two more seeds, and the test split is
reported. `rnnlg`: four samples per
dialogue act from the SFT policy with exact slot errors as feedback (the base of the study `rnnlg`); judged are new samples.
`nlg_ratings`: human ratings; judged is how well the log-ratio ranks held-out responses. Can be stopped and given again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data import slots
from jaxalign.evaluation.batches import encode_text, score_responses
from jaxalign.evaluation.ranking import rank_methods, ranking_scores
from jaxalign.evaluation.runs import open_policy
from jaxalign.evaluation.statistics import distinct_n, kl_from_samples
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.value_regression import ValueRegression
from jaxalign.studies import human_feedback, rnnlg, rnnlg_data
from jaxalign.studies.command_line import run_study
from jaxalign.studies.gin_methods import objective_from_gin
from jaxalign.studies.jobs import Job, read_result
from jaxalign.training.advantages import advantages
from jaxalign.training.checkpoints import CheckpointPolicy
from jaxalign.training.inputs import TaskData
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.partitioning import make_mesh
from jaxalign.training.run import train
from jaxalign.training.score import score_splits

SEEDS = (0, 1, 2)
LEARNING_RATES = (3e-5, 1e-4)
MORE_LEARNING_RATES = (3e-5, 5e-5, 7e-5, 1e-4)
UPDATES = {"rnnlg": 150, "nlg_ratings": 80}
JUDGED = {"validation": 200, "test": 400}
VALUE_UPDATES = 150
# Dialogue acts whose samples are used, drawn at random (the file is ordered by domain).
ACTS = 3000
RATINGS = human_feedback.SOURCES[0]
SCORES = ("informativeness", "naturalness", "quality")
ADVANTAGES = "of_the_reference"
_LOG_RATIO = "tau * log-ratio"
# Without dropout: noise in the log-ratio would be noise in the loss.
POLICIES = {
    task: Policy(dataclasses.replace(config, dropout_rate=0.0), logits_chunk_size=None)
    for task, config in (("rnnlg", rnnlg.CONFIG), ("nlg_ratings", human_feedback.CONFIG))
}


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of the same annotated responses.

    Attributes:
      file: stem of its files.
      kind: of its records.
      packing: batch size and lengths of packed rows, per task; some 30 responses a batch, counted in the table.
      joined: triplets joined into groups of so many responses, per task.
    """

    file: str
    kind: str
    packing: dict[str, tuple[int, int, int]]
    joined: dict[str, int] = dataclasses.field(default_factory=dict)


FORMS = {
    "triplets": Form("triplets", "triplet", {"rnnlg": (6, 160, 144), "nlg_ratings": (6, 128, 128)}),
    "goodness": Form("goodness", "triplet", {"rnnlg": (6, 160, 144), "nlg_ratings": (6, 128, 128)}),
    "best": Form("best", "seq2seq", {"rnnlg": (6, 160, 144)}),
    "pairs": Form("pairs", "pair", {"rnnlg": (5, 128, 192), "nlg_ratings": (4, 96, 144)}),
    "thirds": Form("thirds", "ranked", {"rnnlg": (4, 96, 224)}),
    "groups": Form(
        "groups",
        "triplet",
        {"rnnlg": (3, 96, 288), "nlg_ratings": (4, 96, 144)},
        {"rnnlg": rnnlg.SAMPLES_PER_ACT, "nlg_ratings": 2},
    ),
    "references": Form("references", "triplet", {"rnnlg": (6, 160, 144)}),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
      family: heading of the row's group.
      form: which form of the data it reads.
      strength: its macro in the gin file, and two values.
      macros: others that the data call for, by task.
      gin: files; by default one of the method's name.
      sampling: how the data pipeline draws.
      needs_advantages: whether stored advantages are read.
      tasks: where it can be trained.
    """

    family: str
    form: str = "triplets"
    strength: tuple[str, tuple[Any, Any]] | None = None
    macros: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    gin: tuple[str, ...] = ()
    sampling: str = "uniform"
    needs_advantages: bool = False
    tasks: tuple[str, ...] = ("rnnlg", "nlg_ratings")

    @property
    def settings(self) -> list[tuple[Any, float]]:
        """Four settings of strength and learning rate; a method without a strength gets four learning rates."""
        if self.strength is None:
            return [(None, rate) for rate in MORE_LEARNING_RATES]
        return list(itertools.product(self.strength[1], LEARNING_RATES))


# Feedback above it is a thumb up: no slot error; a rating above the middle of the scale's upper half.
_THUMBS = {
    "rnnlg": {"DESIRABLE_THRESHOLD": -1e-6},
    "nlg_ratings": {"DESIRABLE_THRESHOLD": RATINGS.desirable_threshold},
}
# The default multiplies DRO's learning rate by 1 / tau, which would give it another search than the rest.
_PLAIN = {task: {"RESCALE": "none"} for task in ("rnnlg", "nlg_ratings")}
_TAU = ("TEMPERATURE", (0.3, 1.0))
_BETA = ("BETA", (0.1, 1.0))

# In the order in which they run.
METHODS: dict[str, Method] = {
    "dro_v": Method("DRO", strength=_TAU, macros=_PLAIN),
    "kto": Method("unpaired", strength=("BETA", (1.0, 5.0))),
    "dpo": Method("pairs", "pairs", strength=_BETA),
    "filtered_sft": Method("likelihood", strength=("THRESHOLD", (0.0, 0.25))),
    "nll": Method("likelihood"),
    "best_of_n_sft": Method("likelihood", form="best", gin=("sft",), tasks=("rnnlg",)),
    "agro": Method("lists", "groups", strength=_TAU),
    "rebel": Method("pairs", "pairs", strength=("ETA", (1.0, 3.0))),
    "ipo": Method("pairs", "pairs", strength=("TAU", (0.1, 1.0))),
    "bco": Method("unpaired", strength=_BETA, macros=_THUMBS),
    "a_lol": Method(
        "advantage",
        strength=("RATIO_CLIP", (0.9, None)),
        sampling="priority",
        needs_advantages=True,
    ),
    "infonca": Method("lists", "groups", strength=("BETA", (0.1, 1.0))),
    "zero_value": Method("unpaired", strength=_TAU),
    "osp_logistic": Method(
        "pairs", "pairs", strength=_BETA, macros={"rnnlg": {"PREFERENCE_SCALE": 0.25}}
    ),
    "nca": Method("lists", "groups", strength=("BETA", (0.1, 1.0))),
    "slic": Method("pairs", "pairs", strength=("MARGIN", (1.0, 5.0))),
    "rpo": Method(
        "pairs",
        "pairs",
        strength=_BETA,
        # The published scale divides DPO's gradient by the batch size; at the same learning rates that would not be fair.
        macros={task: {"SCALE": "row_sum"} for task in ("rnnlg", "nlg_ratings")},
    ),
    "reward_weighted_regression": Method("likelihood", strength=_TAU),
    "apo_zero_unpaired": Method("unpaired", strength=_BETA, macros=_THUMBS),
    "dro_p": Method("DRO", strength=_TAU, macros=_PLAIN),
    "kto_reference": Method("unpaired", strength=_BETA, macros=_THUMBS),
    "hinge": Method("pairs", "pairs", strength=_BETA),
    "spa": Method("pairs", "pairs", strength=_BETA),
    "robust_dpo": Method("pairs", "pairs", strength=_BETA),
    "cdpo": Method("pairs", "pairs", strength=_BETA),
    "oreo": Method("token level", strength=("BETA", (0.03, 0.3))),
    "weighted_behaviour_cloning": Method("likelihood", form="goodness", sampling="reward"),
    "reward_partitioning": Method("lists", "groups", strength=("TEMPERATURE", (1.0, 5.0))),
    "nca_pair": Method("pairs", "pairs", strength=_BETA),
    # Its pairs across prompts need feedback on one scale, which margins are not.
    "jpo": Method("pairs", "groups", strength=_BETA),
    "a_lol_seq": Method(
        "advantage",
        strength=("RATIO_CLIP", (0.9, None)),
        sampling="priority",
        needs_advantages=True,
    ),
    "a_lol_reference_free": Method("advantage", sampling="priority", needs_advantages=True),
    "a_lol_kl": Method(
        "advantage", strength=("BETA", (0.05, 0.3)), sampling="priority", needs_advantages=True
    ),
    "r_lol": Method(
        "advantage", form="goodness", strength=("RATIO_CLIP", (0.9, None)), sampling="reward"
    ),
    "r_gold": Method("likelihood", form="goodness"),
    "qrpo": Method(
        "reference samples",
        "references",
        strength=("BETA", (0.3, 1.0)),
        # Slot errors tie, so ranks are not uniform and Z comes from the samples.
        macros={"rnnlg": {"LOG_PARTITION": "samples"}},
        tasks=("rnnlg",),
    ),
    "astar_po": Method(
        "reference samples",
        "references",
        strength=("BETA2", (0.3, 1.0)),
        macros={"rnnlg": {"BETA1": 1.0}},
        tasks=("rnnlg",),
    ),
    "selm": Method("pairs", "thirds", strength=("ALPHA", (0.01, 0.1)), tasks=("rnnlg",)),
    "ift": Method("likelihood", form="best", strength=("MIX", (0.0, 0.2)), tasks=("rnnlg",)),
}


def jobs(data: Path, folder: Path) -> list[Job]:
    """All jobs: the two tasks' SFT policies and samples, data forms, search, final runs."""
    made = [
        dataclasses.replace(
            job, name=f"rnnlg/{job.name}", needs=tuple(f"rnnlg/{n}" for n in job.needs)
        )
        for job in rnnlg.jobs(data, folder / "rnnlg")
        if job.name.split("/")[0] in ("data", "sft", "samples")
    ]
    made += [
        job
        for job in human_feedback.jobs(data, folder)
        if job.name.startswith((f"{RATINGS.name}/data", f"{RATINGS.name}/sft"))
    ]
    for seed in SEEDS:
        made.append(
            Job(
                f"rnnlg/forms/seed{seed}",
                functools.partial(_rnnlg_forms, folder, seed),
                (f"rnnlg/samples/seed{seed}",),
            )
        )
        made.append(
            Job(
                f"nlg_ratings/forms/seed{seed}",
                functools.partial(_ratings_forms, folder, seed),
                (f"nlg_ratings/sft/seed{seed}",),
            )
        )
        for task in UPDATES:
            made.append(
                Job(
                    f"{task}/prepared/seed{seed}",
                    functools.partial(_prepare, folder, task, seed),
                    (f"{task}/forms/seed{seed}",),
                )
            )
    for name, method in METHODS.items():
        for task in method.tasks:
            search = [
                Job(
                    _search_name(task, name, *setting),
                    functools.partial(_run, folder, task, name, 0, *setting),
                    (f"{task}/prepared/seed0",),
                )
                for setting in method.settings
            ]
            made += search
            made += [
                Job(
                    f"{task}/final/{name}/seed{seed}",
                    functools.partial(_final, folder, task, name, seed),
                    (f"{task}/prepared/seed{seed}", *(job.name for job in search)),
                )
                for seed in SEEDS[1:]
            ]
    return made


def _search_name(task: str, name: str, strength: Any, rate: float) -> str:
    label = f"{strength:g}" if isinstance(strength, float) else str(strength)
    return f"{task}/search/{name}/{label}/lr{rate:g}"


def selected(folder: Path, task: str, name: str) -> tuple[Any, float] | None:
    """Strength and learning rate with the best score on the validation split; None before the search has ended."""
    settings = METHODS[name].settings
    results = [read_result(folder, _search_name(task, name, *setting)) for setting in settings]
    if any(result is None for result in results):
        return None
    scores = [result["validation"]["score"] for result in results if result is not None]
    # A policy that did not move ranks nothing: its correlation is NaN.
    return settings[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))]


def seed_results(folder: Path, task: str, name: str) -> list[dict[str, Any]]:
    """The selected setting's run of every seed, as far as they have ended; seed 0 is the search's own."""
    setting = selected(folder, task, name)
    if setting is None:
        return []
    names = [
        _search_name(task, name, *setting),
        *(f"{task}/final/{name}/seed{seed}" for seed in SEEDS[1:]),
    ]
    return [found for each in names if (found := read_result(folder, each)) is not None]


def _final(folder: Path, task: str, name: str, seed: int, job: Path) -> dict[str, Any]:
    setting = selected(folder, task, name)
    assert setting is not None
    return _run(folder, task, name, seed, *setting, job)


def _rnnlg_forms(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """The samples of a seed in every form; each file holds the same annotations."""
    counts: dict[str, Any] = {}
    for split in ("train", "validation"):
        source = folder / f"rnnlg/samples/seed{seed}/triplets.{split}.jsonl"
        rows = read_rows(source)
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        acts = list(dict.fromkeys(row["prompt"] for row in rows))
        drawn = np.random.default_rng(0).permutation(len(acts))[:ACTS]
        chosen = {acts[index] for index in drawn}
        rows = [row for row in rows if row["prompt"] in chosen]
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row)
        references, thirds = [], []
        for prompt, group in by_prompt.items():
            ordered = sorted(group, key=lambda row: -row["feedback"])
            if len(group) == rnnlg.SAMPLES_PER_ACT:
                for index, row in enumerate(group):
                    others = [other["feedback"] for at, other in enumerate(group) if at != index]
                    references.append({**row, "reference_feedback": others})
            if len(group) > 2 and ordered[0]["feedback"] > ordered[-1]["feedback"]:
                # The reference's own answer, whatever its feedback.
                three = [ordered[0], ordered[-1], group[0]]
                thirds.append(
                    {
                        "prompt": prompt,
                        "responses": [row["response"] for row in three],
                        "feedback": [row["feedback"] for row in three],
                    }
                )
        forms = {
            "triplets": rows,
            "groups": rows,
            "goodness": [{**row, "feedback": max(0.0, 1 + row["feedback"])} for row in rows],
            "references": references,
            "thirds": thirds,
            **{
                name: [
                    row
                    for row in read_rows(source.with_name(f"{name}.{split}.jsonl"))
                    if row["prompt"] in chosen
                ]
                for name in ("pairs", "best")
            },
        }
        counts[split] = _write_forms(job, split, forms)
    return counts


def _ratings_forms(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Ratings of quality in every form that two rated sentences a prompt allow."""
    del seed
    counts: dict[str, Any] = {}
    for split in ("train", "validation"):
        rows = read_rows(folder / f"nlg_ratings/data/{split}.jsonl")
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row)
        pairs = []
        for prompt, group in by_prompt.items():
            for one, other in itertools.combinations(group, 2):
                better, worse = sorted((one, other), key=lambda row: -row["feedback"])
                margin = better["feedback"] - worse["feedback"]
                if margin > 0 and better["response"] != worse["response"]:
                    pairs.append(
                        {
                            "prompt": prompt,
                            "chosen": better["response"],
                            "rejected": worse["response"],
                            "margin": margin,
                        }
                    )
        forms = {
            "triplets": rows,
            "groups": rows,
            "goodness": [{**row, "feedback": (row["feedback"] - 1) / 5} for row in rows],
            "pairs": pairs,
        }
        counts[split] = _write_forms(job, split, forms)
    return counts


def _write_forms(
    job: Path, split: str, forms: Mapping[str, list[dict[str, Any]]]
) -> dict[str, int]:
    for name, rows in forms.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (job / f"{name}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {name: len(rows) for name, rows in forms.items()}


def _prepare(folder: Path, task: str, seed: int, job: Path) -> dict[str, Any]:
    """Caches every form, stores reference log-probabilities and the advantages of triplets."""
    run = str(_sft_run(folder, task, seed))
    sft = open_policy(run)
    forms = {METHODS[name].form for name in METHODS if task in METHODS[name].tasks}
    examples = {}
    for form in sorted(forms):
        data = _data(folder, task, seed, form)
        examples[form] = data.prepare()["num_examples"]
        if form != "best":
            score_splits(
                sft.network,
                sft.params,
                data.cache_dir,
                "sft",
                splits=("train",),
                feature_lengths=data.feature_lengths,
                batch_size=32,
                mesh=make_mesh(),
                info={"run": str(sft.info["run_id"]), "step": sft.info["step"]},
            )
    triplets = _data(folder, task, seed, "triplets")
    policy = POLICIES[task]
    rows, inputs, targets = FORMS["triplets"].packing[task]
    train(
        model_dir=str(job / "value"),
        objective=ValueRegression(policy=policy, value=ValueNetwork(policy.config)),
        data=dataclasses.replace(
            triplets, pack=True, row_lengths={"inputs": inputs, "targets": targets}
        ),
        optimizer=adamw(1e-4, warmup_steps=20, clip_norm=1.0),
        loop=constant_loop(VALUE_UPDATES),
        batch_size=rows,
        initial_checkpoint_path=run,
        random_seed=seed,
    )
    shares = advantages(
        value_checkpoint=str(job / "value"),
        cache_dir=triplets.cache_dir,
        name=ADVANTAGES,
        splits=["train"],
    )
    result: dict[str, Any] = {"examples": examples, "positive_advantages": shares["train"]}
    if task == "rnnlg":
        result["test"] = _judge_samples(folder, Path(run), Path(run), "test")
    return result


def _sft_run(folder: Path, task: str, seed: int) -> Path:
    return folder / task / f"sft/seed{seed}" / "run"


def _data(folder: Path, task: str, seed: int, form: str) -> TaskData:
    chosen = FORMS[form]
    files = folder / task / f"forms/seed{seed}"
    return TaskData(
        task=f"{task}_{form}",
        cache_dir=str(files / f"cache_{form}"),
        feature_lengths=rnnlg.LENGTHS if task == "rnnlg" else RATINGS.lengths,
        vocabulary=str(folder / task / "data" / "spm.model"),
        train_file=str(files / f"{chosen.file}.train.jsonl"),
        validation_file=str(files / f"{chosen.file}.validation.jsonl"),
        kind=chosen.kind,
        responses_per_example=chosen.joined.get(task, 1),
        duplicates="keep",
        long_prompts="truncate_left",
        eval_split="",
    )


def constant_loop(steps: int) -> LoopConfig:
    """Training without evaluation or intermediate checkpoints."""
    return LoopConfig(
        train_steps=steps,
        log_period=50,
        eval_period=0,
        checkpoint=CheckpointPolicy(period=10_000, keep_latest=1),
        progress=False,
    )


def _run(
    folder: Path,
    task: str,
    name: str,
    seed: int,
    strength: Any,
    learning_rate: float,
    job: Path,
) -> dict[str, Any]:
    """Trains one method with one setting and judges it on both splits; only `validation` is ever selected by."""
    method = METHODS[name]
    form = FORMS[method.form]
    rows, inputs, targets = form.packing[task]
    data = dataclasses.replace(
        _data(folder, task, seed, method.form),
        pack=True,
        row_lengths={"inputs": inputs, "targets": targets},
        sampling=method.sampling,
        stored={"advantages": ADVANTAGES} if method.needs_advantages else {},
    )
    macros = dict(method.macros.get(task, {}))
    if method.strength is not None:
        macros[method.strength[0]] = strength
    reference = _sft_run(folder, task, seed)
    with objective_from_gin(method.gin or (name,), macros, policy=POLICIES[task]) as objective:
        summary = train(
            model_dir=str(job / "run"),
            objective=objective,
            data=data,
            optimizer=adamw(
                learning_rate,
                warmup_steps=20,
                schedule="cosine",
                total_steps=UPDATES[task],
                clip_norm=1.0,
            ),
            loop=constant_loop(UPDATES[task]),
            batch_size=rows,
            initial_checkpoint_path=str(reference),
            reference_scores="sft",
            random_seed=seed,
        )
    judge = _judge_samples if task == "rnnlg" else _judge_ranking
    return {
        "method": name,
        "strength": strength,
        "learning_rate": learning_rate,
        "train": summary["train"],
        "responses": summary["examples"],
        **{split: judge(folder, job / "run", reference, split) for split in ("validation", "test")},
    }


def _judge_samples(folder: Path, run: Path, reference: Path, split: str) -> dict[str, Any]:
    """One sample at temperature 1 for each of the split's first acts: exact reward, KL from the SFT policy, length."""
    prompts = rnnlg_data.acts(folder / "rnnlg" / "data", split)
    generator = np.random.default_rng(0)
    prompts = [prompts[i] for i in sorted(generator.permutation(len(prompts))[: JUDGED[split]])]
    policy, params, vocabulary = rnnlg._load(run)
    sampled = rnnlg._generate(policy, params, vocabulary, prompts, samples=1, seed=1)
    encoded = [encode_text(vocabulary, prompt, rnnlg.LENGTHS["inputs"]) for prompt in prompts]
    log_probs = [
        score_responses(policy, weights, encoded, sampled, batch_size=128)[0]
        for weights in (params, rnnlg._load(reference)[1])
    ]
    texts = [vocabulary.decode(each[0]) for each in sampled]
    rewards = [rnnlg_data.feedback(act, text) for act, text in zip(prompts, texts, strict=True)]
    return {
        "score": float(np.mean(rewards)),
        "reward": float(np.mean(rewards)),
        "slot_error_rate": rnnlg_data.slot_error_rate(prompts, texts),
        "kl": kl_from_samples(*log_probs).mean,
        "length": float(np.mean([len(each[0]) for each in sampled])),
        "distinct_2": distinct_n(texts, 2),
        "slots": sum(slots.slot_errors(a, t).total for a, t in zip(prompts, texts, strict=True)),
        "rewards": [round(reward, 4) for reward in rewards],
    }


def rating_log_probs(
    rows: list[dict[str, Any]], run: Path, reference: Path
) -> tuple[list[np.ndarray], np.ndarray]:
    """Log-probabilities of rated sentences under a run and its reference, and the sentences' lengths in tokens."""
    opened = open_policy(str(run))
    vocabulary, lengths = opened.vocabulary, RATINGS.lengths
    prompts = [
        encode_text(vocabulary, row["prompt"], lengths["inputs"], long_prompts="truncate_left")
        for row in rows
    ]
    responses = [[encode_text(vocabulary, row["response"], lengths["targets"])] for row in rows]
    log_probs = [
        score_responses(each.network, each.params, prompts, responses)[0][:, 0]
        for each in (opened, open_policy(str(reference)))
    ]
    return log_probs, np.array([len(each[0]) for each in responses])


def _judge_ranking(folder: Path, run: Path, reference: Path, split: str) -> dict[str, Any]:
    """Spearman correlation of the log-ratio with human ratings of held-out sentences, beside longer-wins; KL on the logged responses."""
    rows = read_rows(folder / "nlg_ratings" / "data" / f"{split}.jsonl")
    log_probs, lengths = rating_log_probs(rows, run, reference)
    methods = ranking_scores(log_probs[0], log_probs[1], [row["response"] for row in rows], tau=1.0)
    feedback = np.array([row["feedback"] for row in rows])
    ranked = rank_methods(methods, feedback, [row["prompt"] for row in rows])
    log_ratios = log_probs[0] - log_probs[1]
    return {
        "score": ranked[_LOG_RATIO].spearman,
        "spearman": ranked[_LOG_RATIO].spearman,
        "interval": [ranked[_LOG_RATIO].spearman_low, ranked[_LOG_RATIO].spearman_high],
        "responses": len(rows),
        "baselines": {
            name: ranked[name].spearman for name in ("reference log-prob", "longer wins")
        },
        "log_ratio": float(log_ratios.mean()),
        "log_ratio_std": float(log_ratios.std()),
        "length_correlation": float(np.corrcoef(log_ratios, lengths)[0, 1]),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "equal_footing", jobs)


if __name__ == "__main__":
    main()
