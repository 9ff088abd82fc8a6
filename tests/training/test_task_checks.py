"""A task that does not suit an objective is refused, or warned of, from its metadata alone."""

import dataclasses
import functools

import pytest

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.cache_metadata import (
    CacheMetadata,
    LengthStatistics,
    Range,
    RewardStatistics,
    SplitMetadata,
)
from jaxalign.data.stored_fields import ARRAY_FIELDS
from jaxalign.data.task_data import TaskData
from jaxalign.data.tokenization import Limits
from jaxalign.errors import UserError
from jaxalign.losses import (
    joint_preference,
    pairwise,
    regression,
    soft_preference,
    unpaired,
    weighted_likelihood,
)
from jaxalign.losses.policy_gradient import nll_loss
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.ift import IFT
from jaxalign.objectives.responses import Pairwise, Responses
from jaxalign.objectives.sft import SFT
from jaxalign.objectives.whole_batch import WholeBatch
from jaxalign.training import dry_run, task_checks

POLICY = Policy(
    T5Config(
        vocab_size=16, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8,
        num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",),
    )
)  # fmt: skip
DATA = TaskData(task="mine", cache_dir="c", feature_lengths={"inputs": 8, "targets": 8})


def metadata(kind="triplet", responses=1, low=0.0, high=1.0, notes=None, **more):
    lengths = LengthStatistics(4, 4, 4, 4, 4, 8)
    train = SplitMetadata(
        num_examples=90,
        num_prompts=90,
        num_responses=90 * responses,
        num_read=91,
        prompt_lengths=lengths,
        response_lengths=lengths,
        feedback_range=Range(low, high),
        chosen_feedback_range=Range(low, high),
        rejected={"duplicate": 1},
        notes=notes or {},
        lengths_sha256="",
    )
    validation = dataclasses.replace(train, num_examples=10, num_read=10, rejected={}, notes={})
    described = CacheMetadata(
        name="mine",
        kind=kind,
        limits=Limits(),
        vocabulary={"kind": "bytes"},
        splits={"train": train, "validation": validation},
        responses_per_example=responses,
        fields=() if kind == "seq2seq" else ("feedback",),
        reference_samples=0,
        score_names=(),
        reward_statistics=RewardStatistics((low + high) / 2, (high - low) / 2 or 1.0),
        request=None,
        fingerprint="",
    )
    return dataclasses.replace(described, **more)


def pairwise_of(function, **hyperparameters):
    return Pairwise(policy=POLICY, loss_function=functools.partial(function, **hyperparameters))


def responses_of(function, **hyperparameters):
    return Responses(policy=POLICY, loss_function=functools.partial(function, **hyperparameters))


OSP = pairwise_of(soft_preference.osp_loss, beta=0.1)
REBEL = pairwise_of(pairwise.rebel_loss, eta=1.0)
DPO = pairwise_of(pairwise.dpo_loss, beta=0.1)
JPO = WholeBatch(
    policy=POLICY,
    loss_function=functools.partial(joint_preference.in_batch_jpo_loss, beta=0.1),
)
AGRO = responses_of(regression.agro_loss, temperature=1.0)
CLONING = responses_of(weighted_likelihood.weighted_behaviour_cloning_loss)


@pytest.mark.parametrize(
    ("objective", "facts", "message"),
    [
        (
            REBEL,
            metadata("pair", 2, notes={"without_margin": 7}),
            "rebel .* 7 of the 101 records of the task 'mine' have no field 'margin'",
        ),
        (
            OSP,
            metadata("ranked", 2, notes={"without_feedback": 1}),
            "osp .* have no field 'feedback'",
        ),
        (
            OSP,
            metadata("pair", 2, high=3.0),
            r"osp needs chosen_feedback that are probabilities in \[0, 1\], but the task 'mine' has 3 in the split 'train'",
        ),
        (
            CLONING,
            metadata(low=-2.0),
            "needs feedback that are not negative, but the task 'mine' has -2",
        ),
        (JPO, metadata("pair", 2), "jpo compares responses to different prompts .* margins of pairs"),
        (
            JPO,
            metadata("ranked", 3, notes={"without_feedback": 1}),
            "jpo .* has ranks, .* JOINT_WEIGHT = 0",
        ),
        (AGRO, metadata(), "the task 'mine' has 1: join .*TaskData.responses_per_example=4"),
        (
            DPO,
            metadata(),
            r"needs 2 response\(s\) .* task 'mine' has 1: join .*--gin.TaskData.responses_per_example=2 and another --CACHE_DIR=.*"
            r"; or .* --gin_file=tasks/jsonl_pairs.gin --TRAIN_FILE=.* and another --CACHE_DIR=",
        ),
        # Nobody knows which of two responses without feedback is better.
        (DPO, metadata("seq2seq"), "task 'mine' has 1: give a file of pairs: --gin_file="),
        (DPO, metadata("ranked", 4), "task 'mine' has 4: give a file of pairs: --gin_file="),
        (AGRO, metadata("seq2seq", 2), "agro needs rewards, which the task 'mine' does not have"),
        (
            responses_of(
                weighted_likelihood.reward_weighted_regression_loss, temperature=1.0
            ),
            metadata("seq2seq"),
            "its records are of kind 'seq2seq'",
        ),
    ],
)  # fmt: skip
def test_a_task_that_does_not_suit_an_objective_is_refused_by_name(objective, facts, message):
    with pytest.raises(UserError, match=message) as refused:
        task_checks.check(objective, DATA, facts, quiet=True)
    assert "\n" not in str(refused.value)


def test_jpo_gets_what_it_can_compare():
    for facts in (metadata("ranked", 3), metadata("triplet", 3)):
        task_checks.check(JPO, DATA, facts, quiet=True)
    within = dataclasses.replace(
        JPO,
        loss_function=functools.partial(
            joint_preference.in_batch_jpo_loss, beta=0.1, joint_weight=0.0
        ),
    )
    task_checks.check(within, DATA, metadata("pair", 2), quiet=True)


@pytest.mark.parametrize(
    "objective", [SFT(policy=POLICY), IFT(policy=POLICY), responses_of(nll_loss)]
)
def test_imitation_gets_the_best_response_of_pairs_alone_and_says_so(objective, capsys):
    for kind in ("pair", "ranked"):
        assert task_checks.check(objective, DATA, metadata(kind, 2)).responses == "best"
        assert "TaskData.responses = 'all' trains on every one" in capsys.readouterr().err
    # Grouped records of single responses were all logged, and none of them was rejected.
    assert task_checks.check(objective, DATA, metadata("triplet", 4)).responses == "all"
    every = dataclasses.replace(DATA, responses="all")
    assert task_checks.check(objective, every, metadata("pair", 2)).responses == "all"
    assert task_checks.check(DPO, DATA, metadata("pair", 2)).responses == "all"


@pytest.mark.parametrize(
    ("low", "high", "warning"),
    [
        (0.0, 1.0, None),
        (1.0, 5.0, "100 % of the training responses of 'mine' exceed apo_zero_unpaired's desirable_threshold 0.5"),
        (-1.0, 0.5, "0 % of the training responses"),
        (3.0, 3.0, "all feedback of 'mine', split 'train', is 3: "),
    ],
)  # fmt: skip
def test_feedback_that_is_all_alike_is_warned_of_in_one_line(low, high, warning, capsys):
    objective = responses_of(unpaired.apo_zero_unpaired_loss, beta=0.1)
    task_checks.check(objective, DATA, metadata(low=low, high=high))
    first, lengths, *others = capsys.readouterr().err.splitlines()
    assert first == (
        "task mine: 90 train, 10 validation examples; rejected records: 1 duplicate (listed in c/rejected.jsonl)"
    )
    assert lengths.startswith("prompts: 4 tokens at the median, 8 at most; responses: 4 tokens")
    assert len(others) == (warning is not None)
    assert not others or others[0].startswith(f"warning: {warning}")


def test_a_task_with_everything_suits_every_gin_file(repository):
    """Or a field that an objective asks for would be refused although every batch has it."""
    stems = sorted(path.stem for path in (repository / "gin_configs" / "objectives").glob("*.gin"))
    data = dataclasses.replace(DATA, stored={field: field for field in ARRAY_FIELDS})
    fields = ("feedback", "scores", "reference_feedback")
    for stem in stems:
        text = (repository / "gin_configs" / "objectives" / f"{stem}.gin").read_text()
        macros = {"VALUE_TOKEN": 3} if "VALUE_TOKEN" in text else {}
        macros |= {"NUM_FEATURES": 3} if "NUM_FEATURES" in text else {}
        policy = Policy(POLICY.config, value_token=macros.get("VALUE_TOKEN"))
        objective = objective_from_gin([stem], macros, policy=policy)
        responses = objective.responses_per_prompt or 2
        facts = metadata("multi", responses, fields=fields)
        assert task_checks.check(objective, data, facts, quiet=True).responses == "all"


def test_a_vocabulary_that_is_missing_is_told_although_there_is_a_cache(tmp_path, capsys):
    """Training reads a file with it; a cache alone has its own copy, and a typing error would go unnoticed."""
    from jaxalign.data.cache import cache
    from jaxalign.training.optimizers import sgd

    lines = [f'{{"prompt": "p {i}", "response": "r {i}", "feedback": {i}}}\n' for i in range(40)]
    (tmp_path / "my.jsonl").write_text("".join(lines))
    folder, file = str(tmp_path / "cache"), str(tmp_path / "my.jsonl")
    cache("mine", folder, train_file=file, max_input_length=8, max_target_length=8)
    objective = SFT(policy=Policy(dataclasses.replace(POLICY.config, vocab_size=384)))

    def run(**options):
        data = dataclasses.replace(DATA, cache_dir=folder, **options)
        dry_run.check(
            model_dir=str(tmp_path / "run"),
            objective=objective,
            data=data,
            optimizers={"policy": sgd(1e-2)},
            batch_size=4,
        )

    run(train_file=file)
    with pytest.raises(UserError, match=r"^VOCABULARY nothere.model does not exist$"):
        run(train_file=file, vocabulary="nothere.model")
    with pytest.raises(UserError, match=r"cache was made with vocabulary bytes with 0 extra ids"):
        run(train_file=file, vocabulary="bytes", extra_ids=100)
    assert "warning" not in capsys.readouterr().err
    run(vocabulary="nothere.model")
    assert (
        "warning: VOCABULARY nothere.model does not exist; the cache in" in capsys.readouterr().err
    )
