"""Intuitive Fine-Tuning (arXiv 2405.11870): Frozen Lake as in the paper, and dialogue acts with exact slot errors.

    python -m studies.intuitive_fine_tuning --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2 --only lake
    python -m studies.intuitive_fine_tuning --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2
    python -m studies.intuitive_fine_tuning_report

Jobs `lake/...` need no data and take a minute: a network of one hidden layer imitates one optimal path of six actions (SFT, IFT), or
prefers it to a sub-optimal one (ORPO, DPO), and is compared with the optimal policy in all states. The token losses are jaxalign's; the
path is a response of six tokens. Jobs `rnnlg/...` train T5 policies, see `intuitive_fine_tuning_rnnlg`. The same command continues an
interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxalign.losses.masking import as_float32
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.segments import segment_lengths, segment_positions
from jaxalign.losses.token_level import (
    ift_algorithm_1_loss,
    ift_code_loss,
    ift_equation_21_loss,
)
from jaxalign.recipes.jobs import Job
from studies import frozen_lake, intuitive_fine_tuning_rnnlg
from studies.command_line import run_study
from studies.frozen_lake import DOWN, LEFT, RIGHT

SEEDS = 30
HIDDEN, RATE = 32, 3e-3
# (state, action); from state 9 and the start both ways are equally good.
OPTIMAL = ((0, DOWN), (4, DOWN), (8, RIGHT), (9, DOWN), (13, RIGHT), (14, RIGHT))
SUB_OPTIMAL = ((0, RIGHT), (1, RIGHT), (2, DOWN), (6, DOWN), (10, LEFT), (9, DOWN), (13, RIGHT),
               (14, RIGHT))  # fmt: skip
BUDGETS = (50, 100, 200, 400)
MIXES = (0.0, 0.2, 0.5, 1.0)
DISCOUNTS = (0.0, 0.5, 0.95, 0.99)
ORPO_WEIGHT, DPO_BETA = 0.25, 0.1
SFT = "SFT"


@dataclasses.dataclass(frozen=True)
class Arm:
    """How the network is trained on the lake.

    Attributes:
      form: 'code', 'algorithm_1' or 'equation_21' of IFT, 'early' (fixed weights n, n - 1, ..., 1), 'orpo' or 'dpo'.
      mix: lambda.
      discount: gamma.
      detach: token weights as constants.
      sft_share: share of the updates that are SFT on the optimal path, before; DPO's reference is the policy after them.
    """

    form: str = "code"
    mix: float = 0.0
    discount: float = 0.0
    detach: bool = False
    sft_share: float = 0.0


ARMS = {
    SFT: Arm(),
    **{
        f"IFT {mix:g}, {discount:g}": Arm(mix=mix, discount=discount)
        for mix in MIXES
        for discount in DISCOUNTS
        if mix or discount
    },
    "IFT 0.2, 0.95, constant weights": Arm(mix=0.2, discount=0.95, detach=True),
    "IFT, algorithm 1": Arm("algorithm_1", mix=0.2, discount=0.95),
    "IFT, equation 21": Arm("equation_21", mix=0.2),
    "early weights": Arm("early"),
    "ORPO": Arm("orpo"),
    "DPO": Arm("dpo"),
    "DPO after SFT": Arm("dpo", sft_share=0.5),
}


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns the jobs of the lake, one per arm, and those of the dialogue acts."""
    made = [Job(job_name(name), functools.partial(_lake, arm)) for name, arm in ARMS.items()]
    return made + intuitive_fine_tuning_rnnlg.jobs(data, folder)


def job_name(arm: str) -> str:
    """Returns the name of an arm's job."""
    return f"lake/{arm.replace(', ', '_').replace(' ', '_')}"


def initial_params(key: Array) -> dict[str, Array]:
    """Returns a network one-hot state - tanh - logits of the actions."""
    first, second = jax.random.split(key)
    glorot = jax.nn.initializers.glorot_normal()
    return {
        "first": glorot(first, (frozen_lake.NUM_STATES, HIDDEN)),
        "first_bias": jnp.zeros(HIDDEN),
        "second": glorot(second, (HIDDEN, frozen_lake.NUM_ACTIONS)),
        "second_bias": jnp.zeros(frozen_lake.NUM_ACTIONS),
    }


def action_log_probs(
    params: dict[str, Array], states: Float[Array, "steps states"]
) -> Float[Array, "steps actions"]:
    """Returns log-probabilities of the actions in states, or in mixtures of states."""
    hidden = jnp.tanh(states @ params["first"] + params["first_bias"])
    return jax.nn.log_softmax(hidden @ params["second"] + params["second_bias"])


def path_losses(
    params: dict[str, Array], path: tuple[tuple[int, int], ...], mix: float = 0.0
) -> Float[Array, "one steps"]:
    """Returns the negative log-probability of every action of a path, as a row with one response.

    With ``mix`` the input of a step is a mixture of the true state and the state that the greedy action of the step before leads to.
    No gradient passes through it.
    """
    states, actions = (jnp.array(each) for each in zip(*path, strict=True))
    one_hot = jnp.eye(frozen_lake.NUM_STATES)
    inputs = one_hot[states]
    if mix:
        greedy = jnp.argmax(action_log_probs(params, inputs), axis=-1)
        reached = jnp.asarray(frozen_lake.next_states())[states, greedy]
        guessed = jnp.concatenate([states[:1], reached[:-1]])
        inputs = (1 - mix) * inputs + mix * one_hot[guessed]
    log_probs = action_log_probs(params, inputs)
    return -jnp.take_along_axis(log_probs, actions[:, None], axis=1)[None, :, 0]


def imitation_loss(losses: Float[Array, "one steps"], arm: Arm) -> Float[Array, ""]:
    """Returns the mean over the path of an arm's token losses. RMSprop ignores a constant factor."""
    segments = jnp.ones(losses.shape, jnp.int32)
    options: dict[str, Any] = {"discount": arm.discount, "detach": arm.detach}
    if arm.form == "code":
        weighted = ift_code_loss(losses, segments, **options)
    elif arm.form == "algorithm_1":
        weighted = ift_algorithm_1_loss(losses, segments, **options)
    elif arm.form == "equation_21":
        weighted = ift_equation_21_loss(losses, segments)
    else:
        weighted = (segment_lengths(segments) - segment_positions(segments)) * losses
    return jnp.mean(weighted)


def orpo_loss(
    chosen: Float[Array, ""], rejected: Float[Array, ""], *, weight: float
) -> Float[Array, ""]:
    """ORPO from the mean log-probabilities of a token (arXiv 2403.07691, equations 6 and 7); docs/adding_a_method.md has it for T5."""
    chosen, rejected = as_float32(chosen, rejected)
    odds = [each - jnp.log(-jnp.expm1(jnp.minimum(each, -1e-6))) for each in (chosen, rejected)]
    return -chosen - weight * jax.nn.log_sigmoid(odds[0] - odds[1])


def arm_loss(params: dict[str, Array], reference: dict[str, Array], arm: Arm) -> Float[Array, ""]:
    """Returns the loss of an arm."""
    if arm.form not in ("orpo", "dpo"):
        return imitation_loss(path_losses(params, OPTIMAL, arm.mix), arm)
    paths = (OPTIMAL, SUB_OPTIMAL)
    losses = [path_losses(params, path)[0] for path in paths]
    if arm.form == "orpo":
        return orpo_loss(-losses[0].mean(), -losses[1].mean(), weight=ORPO_WEIGHT)
    known = [path_losses(reference, path)[0] for path in paths]
    ratios = [(b - a).sum()[None] for a, b in zip(losses, known, strict=True)]
    return dpo_loss(*ratios, beta=DPO_BETA)[0]


def train_arm(
    arm: Arm, updates: int, snapshots: tuple[int, ...], key: Array
) -> Float[Array, "snapshots states actions"]:
    """Trains one network and returns its policy in all states after some numbers of updates, which count SFT before the arm's loss."""
    params = initial_params(key)
    first = int(arm.sft_share * updates)
    policies = []
    for stage, done, count in ((Arm(), 0, first), (arm, first, updates - first)):
        params, found = _stage(stage, params, count)
        policies += [found[each - done - 1] for each in snapshots if done < each <= done + count]
    return jnp.stack(policies)


def _stage(arm: Arm, reference: dict[str, Array], updates: int) -> tuple[dict[str, Array], Array]:
    """Trains from the parameters ``reference``; returns new ones, and the policy after every update."""
    optimizer = optax.rmsprop(RATE)

    def step(state: Any, _: Any) -> Any:
        params, slots = state
        gradient = jax.grad(arm_loss)(params, reference, arm)
        change, slots = optimizer.update(gradient, slots, params)
        params = optax.apply_updates(params, change)
        return (params, slots), policy_of(params)

    (params, _), policies = jax.lax.scan(
        step, (reference, optimizer.init(reference)), None, updates
    )
    return params, policies


def policy_of(params: dict[str, Array]) -> Float[Array, "states actions"]:
    """Returns the probabilities of the actions in all states."""
    return jnp.exp(action_log_probs(params, jnp.eye(frozen_lake.NUM_STATES)))


def measures(policies: Float[np.ndarray, "seeds states actions"]) -> dict[str, list[float]]:
    """Returns each seed's squared error over all live states, those of the optimal path and the others, and the policy's value."""
    errors = frozen_lake.squared_error(policies)
    on_path = np.isin(np.arange(frozen_lake.NUM_STATES), [state for state, _ in OPTIMAL])
    matrix = np.square(
        frozen_lake.transitions(policies) - frozen_lake.transitions(frozen_lake.optimal_policy())
    ).sum(axis=-1)
    live = frozen_lake.LIVE
    return {
        "error": errors[:, live].mean(axis=1).tolist(),
        "on_path": errors[:, live & on_path].mean(axis=1).tolist(),
        "off_path": errors[:, live & ~on_path].mean(axis=1).tolist(),
        "next_state_error": matrix[:, live].mean(axis=1).tolist(),
        "value": frozen_lake.success(policies).tolist(),
    }


def _lake(arm: Arm, job: Path) -> dict[str, Any]:
    del job
    keys = jax.random.split(jax.random.PRNGKey(0), SEEDS)
    # The length of a first stage of SFT depends on the number of updates, so each number needs its own training.
    plans = [(each, (each,)) for each in BUDGETS] if arm.sft_share else [(max(BUDGETS), BUDGETS)]
    found: dict[str, Any] = {}
    for updates, snapshots in plans:
        trained = jax.jit(jax.vmap(functools.partial(train_arm, arm, updates, snapshots)))
        policies = np.asarray(trained(keys), np.float64)
        found |= {str(each): measures(policies[:, i]) for i, each in enumerate(snapshots)}
    return found


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "intuitive_fine_tuning", jobs)


if __name__ == "__main__":
    main()
