"""Studies of teacher hacking, SA2, RPO without pairs and OSP: complete graphs, their pure parts, and pages of unfinished studies."""

import dataclasses
import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.inference.rows import score_responses
from jaxalign.networks.policy import Policy
from studies import (
    repeated_steps,
    rounds_osp_pairs,
    rpo_unpaired,
    rpo_unpaired_report,
    rpo_unpaired_training,
    self_augmented_selection_data,
    teacher_hacking_measures,
    teacher_hacking_report,
)
from studies.command_line import MINI_T5

NAMES = ("teacher_hacking", "self_augmented_selection", "rpo_unpaired", "rounds_osp")


@pytest.mark.parametrize("name", NAMES)
def test_every_job_has_what_it_needs_and_a_name_of_its_own(name, tmp_path):
    jobs = importlib.import_module(f"studies.{name}").jobs(tmp_path, tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for position, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:position])


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_study_that_has_not_run_names_all_arms(name, tmp_path):
    study = importlib.import_module(f"studies.{name}")
    report = importlib.import_module(f"studies.{name}_report").report
    page = report(tmp_path, tmp_path / "page.png")
    for arm in study.ARMS:
        assert f"{arm}` (0)" in page


def test_the_page_of_teacher_hacking_shows_what_has_finished(tmp_path):
    result = {
        "epochs": [0, 1, 2],
        "golden": [3.0, 2.0, 2.5],
        "proxy": [3.0, 2.0, 1.0],
        "lowest": 1,
        "rise": 0.5,
        "u": True,
        "windows": [2],
        "log_slope": -1.0,
        "steps": 40,
    }
    folder = tmp_path / "offline/seed1"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    page = teacher_hacking_report.report(tmp_path, tmp_path / "page.png")
    assert "| `offline` | 1.000 | 2.500 | 2.000 | 1.0 | 0.500 | 1 of 1 | 1.0 | -1.00 | 40 |" in page
    assert "`offline` (1)" in page
    assert (tmp_path / "page.png").stat().st_size


def test_the_page_of_rpo_shows_what_has_finished(tmp_path):
    numbers = {"accuracy": 0.6, "accuracy_error": 0.02, "good_over_bad": 0.7, "log_ratio": 1.0}
    results = {
        "rnnlg/responses": {"train": 9, "good": 0.5, "pairs": 4, "test_pairs": 3},
        "rnnlg/uniform": {**numbers, "log_ratio_std": 1.0},
    }
    for name, result in results.items():
        folder = tmp_path / name / "seed0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    page = rpo_unpaired_report.report(tmp_path, tmp_path / "page.png")
    assert "| `uniform` | 0.600 (0.020) | 0.700 |" in page


def test_a_teacher_that_is_no_nearer_to_the_oracle_than_the_student_is_refused():
    teacher_hacking_measures.check_starts(1.0, 1.1)
    with pytest.raises(UserError, match=r"below the student's 1\.000"):
        teacher_hacking_measures.check_starts(1.0, 1.0)


def test_the_detector_finds_the_exponent_of_a_power_law_in_the_last_third():
    epochs = np.arange(1, 41)
    # The first two thirds do not follow it.
    values = np.where(epochs < 26, 5.0, 3.0 * epochs**-0.25)
    assert teacher_hacking_measures.log_slope(epochs, values) == pytest.approx(-0.25)


def test_a_u_needs_a_rise_above_two_standard_errors():
    noise = np.array([-1.0, 1.0, -1.0, 1.0])
    u = teacher_hacking_measures.hacked(np.array([[3.0] * 4, [1.0] * 4, [2.0] * 4]), [3, 2, 1])
    assert u["u"] and u["lowest"] == 1 and u["windows"] == [2]
    unclear = np.array([[3.0] * 4, [1.0] * 4, 1.1 + noise])
    assert not teacher_hacking_measures.hacked(unclear, [3, 2, 1])["u"]
    assert not teacher_hacking_measures.hacked(np.array([[3.0] * 4, [1.0] * 4]), [3, 2])["u"]


def test_epochs_have_every_example_once_in_packed_rows():
    prompts = [[3, 1], [4, 1], [5, 1], [6] * 20]
    groups = [[prompt, [7, 1]] for prompt in prompts]
    endless = repeated_steps.endless_batches(
        prompts, groups, size=2, generator=np.random.default_rng(0)
    )
    for _ in range(3):
        epoch = [next(endless) for _ in range(2)]
        assert sorted(np.concatenate([index for index, _ in epoch])) == [0, 1, 2, 3]
        for index, batch in epoch:
            inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
            assert inputs.shape == (2, 20)
            assert sorted(inputs[inputs > 0]) == sorted(
                itertools.chain(*(prompts[i] for i in index))
            )
            assert (targets > 0).sum() == sum(len(prompts[i]) + 2 for i in index)
    with pytest.raises(ValueError, match="4 examples do not fill a batch of 5"):
        next(
            repeated_steps.epoch_batches(
                prompts, groups, size=5, generator=np.random.default_rng(0)
            )
        )


def test_packed_rows_give_every_example_its_own_score():
    policy = Policy(dataclasses.replace(MINI_T5, emb_dim=8, head_dim=4, num_heads=2, mlp_dim=8, vocab_size=16))  # fmt: skip
    params = policy.init(jax.random.key(0))
    generator = np.random.default_rng(0)
    prompts, firsts, seconds = (
        [[*generator.integers(2, 16, generator.integers(1, longest)), 1] for _ in range(9)]
        for longest in (12, 6, 9)
    )
    groups = [list(pair) for pair in zip(firsts, seconds, strict=True)]
    shape = repeated_steps.RowShape(40, 40)
    batch = repeated_steps.packed_batch(prompts, groups, shape)
    assert len(batch["encoder_input_tokens"]) < len(prompts)
    found = repeated_steps.of_examples(policy.score(params, batch).log_probs, batch)
    expected, _ = score_responses(policy, params, prompts, groups)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_acts_of_fewshotwoz_become_one_act_of_rnnlg():
    prompt = "request ( area = ? ; type = ? ) @ inform ( choice = 79 ; price = 1,200 )"
    assert self_augmented_selection_data.joined_act(prompt) == (
        "request inform(area=?;type=?;choice=79;price=1 200)"
    )
    assert self_augmented_selection_data.joined_act("bye ( )") == "bye()"


def test_unpaired_responses_have_one_for_each_prompt():
    rows = [{"prompt": p, "response": r} for p in "abc" for r in "xyz"]
    found = rpo_unpaired.one_each(rows, 0)
    assert sorted(row["prompt"] for row in found) == ["a", "b", "c"]
    assert rpo_unpaired.good_over_bad(
        np.array([2.0, 1.0, 0.0, 1.0]), np.array([True, True, False, False])
    ) == pytest.approx((2 + 1.5) / 4)


@pytest.mark.parametrize("arm", ["uniform", "t5_tau0.1", "t5_tau0.75", "sft_on_good"])
def test_losses_prefer_higher_log_ratios_of_good_responses(arm):
    loss = rpo_unpaired_training.loss_of(arm, 0.5)
    feedback = jnp.array([[1.0], [1.0], [0.0], [0.0]])
    vectors = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])

    def total(ratios):
        losses, _ = loss(ratios, feedback, vectors, jnp.ones((4, 1), bool))
        return losses.sum()

    gradient = jax.grad(total)(jnp.zeros((4, 1)))[:, 0]
    assert (gradient[:2] < 0).all()
    if arm != "sft_on_good":
        assert (gradient[2:] > 0).all()


def test_comparisons_come_in_both_orders_with_opposite_answers():
    acts = ["inform(name=SLOT_NAME;area=SLOT_AREA)", "inform(name=SLOT_NAME)"]
    groups = [["SLOT_NAME is in SLOT_AREA", "hello", "hello"], ["hi", "ho"]]
    rows = rounds_osp_pairs.comparisons(acts, groups, 5)
    assert [answer for _, answer in rows] == ["A", "B"]
    assert "response A : SLOT_NAME is in SLOT_AREA response B : hello" in rows[0][0]
    assert "response A : hello response B : SLOT_NAME is in SLOT_AREA" in rows[1][0]


def test_exact_strengths_are_even_for_ties_and_cross_entropy_is_least_at_their_logits():
    act = "inform(name=SLOT_NAME;area=SLOT_AREA)"
    assert rounds_osp_pairs.exact_strength(act, "hello", "hi") == 0.5
    assert rounds_osp_pairs.exact_strength(act, "SLOT_NAME", "hi") == pytest.approx(
        1 / (1 + np.exp(-5))
    )
    strengths = np.array([0.3, 0.9])
    logits = np.log(strengths / (1 - strengths))
    least = rounds_osp_pairs.cross_entropy(logits, strengths)
    entropy = -(strengths * np.log(strengths) + (1 - strengths) * np.log(1 - strengths)).mean()
    assert least == pytest.approx(entropy)
    assert rounds_osp_pairs.cross_entropy(logits + 0.1, strengths) > least
