"""The bandit of `bandit` with the other methods: which methods reach pi*, which have another optimum, and why."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxalign.losses import (
    contrastive,
    joint_preference,
    listwise,
    pairwise,
    policy_gradient,
    regression,
    soft_preference,
    unpaired,
    weighted_likelihood,
)
from jaxalign.losses.requirements import quantities_of
from jaxalign.objectives.base import Objective
from jaxalign.objectives.responses import Pairwise, Responses
from jaxalign.objectives.whole_batch import WholeBatch
from jaxalign.training.optimizers import adamw
from studies.bandit_problem import (
    PROMPTS,
    RESPONSES,
    SAMPLES,
    Bandit,
    TabularPolicy,
    bandit_batch,
    batch_of,
    cell,
    divergence,
    judge,
    make_bandit,
    solve,
)

STEPS = 20_000
FLIP_RATE = 0.1
LEARNING_RATE = 0.03
_PROMPT_COLUMN = np.arange(PROMPTS)
_WEIGHT = "density_ratios"


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
      make: function from the bandit and tau to the objective and its batch.
      reason: why the method reaches pi*, or its optimum otherwise.
      target: log-probabilities ``[prompts, responses]`` of the method's optimum, if it differs from pi* and has a closed form.
    """

    make: Callable[[Bandit, float], tuple[Objective, Mapping[str, Any]]]
    reason: str
    target: Callable[[Bandit, float], np.ndarray] | None = None


def weighted(loss_function: Callable[..., Any], *, pairs: bool) -> Callable[..., Any]:
    """Multiplies a loss by a weight per response or pair from the batch, for expectations that are not counts.

    Args:
      loss_function: a loss of `Responses` or `Pairwise`.
      pairs: whether it is a loss of `Pairwise`.
    """
    required, optional = quantities_of(loss_function)
    weight = f"chosen_{_WEIGHT}" if pairs else _WEIGHT

    @functools.wraps(_unwrap(loss_function))
    def call(**arrays: Array) -> tuple[Array, Array]:
        own = {name: value for name, value in arrays.items() if name in (*required, *optional)}
        result = loss_function(**own)
        losses = result[0] if isinstance(result, tuple) else result
        return losses * arrays[weight], arrays[weight]

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = dict.fromkeys((*required, *optional, weight))
    call.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    del call.__wrapped__  # type: ignore[attr-defined]
    return call


def preferences(bandit: Bandit) -> np.ndarray:
    """Returns the exact Bradley-Terry probabilities P(i is preferred to j), ``[prompts, i, j]``."""
    difference = bandit.rewards[:, :, None] - bandit.rewards[:, None, :]
    return 1 / (1 + np.exp(-difference))


def pairs_batch(
    bandit: Bandit,
    *,
    flip_rate: float = 0.0,
    labels: bool = True,
) -> dict[str, np.ndarray]:
    """Makes a batch of every ordered pair of different responses, weighted by the probability of drawing it with this label.

    Args:
      bandit: the problem.
      flip_rate: share of wrong labels.
      labels: weight by the probability of the label too; otherwise by mu alone.
    """
    first, second = np.nonzero(~np.eye(RESPONSES, dtype=bool))
    prompts = np.repeat(_PROMPT_COLUMN, len(first))
    first, second = np.tile(first, PROMPTS), np.tile(second, PROMPTS)
    chosen = preferences(bandit)[prompts, first, second]
    weights = bandit.behaviour[prompts, first] * bandit.behaviour[prompts, second]
    if labels:
        weights = weights * ((1 - flip_rate) * chosen + flip_rate * (1 - chosen))
    actions = np.stack([first, second], axis=1)
    fields = {_WEIGHT: np.stack([weights / weights.mean()] * 2, axis=1)}
    return batch_of(bandit, prompts, actions, **fields)


def counted_batch(bandit: Bandit, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Makes a batch of `SAMPLES` responses per prompt, in proportion to probabilities that are multiples of 1/SAMPLES."""
    counts = np.rint(probabilities * SAMPLES).astype(int)
    actions = np.stack([np.repeat(np.arange(RESPONSES), row) for row in counts])
    return batch_of(bandit, _PROMPT_COLUMN, actions)


def with_reference_rewards(bandit: Bandit, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the rewards of `SAMPLES` responses per prompt, in proportion to pi_ref."""
    drawn = counted_batch(bandit, np.exp(bandit.reference_log_probs))
    return {**batch, "reference_rewards": drawn["rewards"][:, 0][:, None]}


def _policy(bandit: Bandit) -> TabularPolicy:
    return TabularPolicy(tuple(map(tuple, bandit.reference_log_probs.tolist())))


def _pairs(
    loss_function: Callable[..., Any],
    batch: Callable[[Bandit], Mapping[str, Any]] = pairs_batch,
    **options: Callable[[float], Any] | Any,
) -> Callable[[Bandit, float], tuple[Objective, Mapping[str, Any]]]:
    def make(bandit: Bandit, tau: float) -> tuple[Objective, Mapping[str, Any]]:
        bound = functools.partial(loss_function, **_at(options, tau))
        return Pairwise(policy=_policy(bandit), loss_function=weighted(bound, pairs=True)), batch(
            bandit
        )

    return make


def _responses(
    loss_function: Callable[..., Any],
    batch: Callable[[Bandit], Mapping[str, Any]] = bandit_batch,
    *,
    statistics: Any = None,
    whole_batch: bool = False,
    **options: Callable[[float], Any] | Any,
) -> Callable[[Bandit, float], tuple[Objective, Mapping[str, Any]]]:
    def make(bandit: Bandit, tau: float) -> tuple[Objective, Mapping[str, Any]]:
        bound = functools.partial(loss_function, **_at(options, tau))
        kind = WholeBatch if whole_batch else Responses
        return kind(policy=_policy(bandit), loss_function=bound, statistics=statistics), batch(
            bandit
        )

    return make


def _at(options: Mapping[str, Any], tau: float) -> dict[str, Any]:
    return {name: value(tau) if callable(value) else value for name, value in options.items()}


def _unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _each_once(bandit: Bandit) -> dict[str, np.ndarray]:
    """Makes a batch with every response of a prompt once."""
    return batch_of(bandit, _PROMPT_COLUMN, np.tile(np.arange(RESPONSES), (PROMPTS, 1)))


def _with_third(bandit: Bandit) -> dict[str, np.ndarray]:
    """Makes a batch of every pair with every third response, weighted by pi_ref of the third response."""
    pairs = pairs_batch(bandit)
    prompts = np.repeat(pairs["example_ids"][:, 0], RESPONSES)
    third = np.tile(np.arange(RESPONSES), len(pairs["example_ids"]))
    actions = np.repeat(pairs["actions"][:, 0], RESPONSES, axis=0)
    weights = np.repeat(pairs[_WEIGHT][:, 0, :1], RESPONSES, axis=0)
    drawn = np.exp(bandit.reference_log_probs)[prompts, third][:, None] * RESPONSES
    return batch_of(
        bandit,
        prompts,
        np.concatenate([actions, third[:, None]], axis=1),
        **{_WEIGHT: np.repeat(weights * drawn, 3, axis=1)},
    )


def _same(tau: float) -> float:
    return tau


def _inverse(tau: float) -> float:
    return 1 / tau


def _soft_labels(bandit: Bandit) -> dict[str, np.ndarray]:
    batch = pairs_batch(bandit, labels=False)
    rows, actions = batch["example_ids"][:, 0], batch["actions"][:, 0]
    chosen = preferences(bandit)[rows, actions[:, 0], actions[:, 1]].astype(np.float32)
    batch["feedback"] = np.stack([chosen, np.zeros_like(chosen)], axis=1)[:, None]
    return batch


def _argmax_labels(bandit: Bandit) -> dict[str, np.ndarray]:
    batch = pairs_batch(bandit, labels=False)
    rewards = batch["rewards"][:, 0]
    batch[_WEIGHT] = batch[_WEIGHT] * (rewards[:, :1] > rewards[:, 1:])[:, None]
    return batch


def _nonnegative_feedback(bandit: Bandit) -> dict[str, np.ndarray]:
    batch = bandit_batch(bandit)
    return {**batch, "feedback": batch["feedback"] - bandit.rewards.min()}


def _advantages(bandit: Bandit) -> dict[str, np.ndarray]:
    batch = bandit_batch(bandit)
    value = np.sum(np.exp(bandit.reference_log_probs) * bandit.rewards, axis=-1)
    return {**batch, "advantages": batch["rewards"] - value[:, None, None].astype(np.float32)}


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    top = log_weights - log_weights.max(axis=-1, keepdims=True)
    return top - np.log(np.exp(top).sum(axis=-1, keepdims=True))


def _behaviour_tilted(weights: Callable[[Bandit, float], np.ndarray]) -> Any:
    def target(bandit: Bandit, tau: float) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return _normalised(np.log(bandit.behaviour) + np.log(weights(bandit, tau)))

    return target


def _ipo_target(bandit: Bandit, tau: float) -> np.ndarray:
    """Returns pi_ref exp(E_{y' ~ mu} P(y > y') / tau); the pair (y, y) counts one half."""
    chance = np.einsum("pj,pij->pi", bandit.behaviour, preferences(bandit))
    return _normalised(bandit.reference_log_probs + chance / tau)


METHODS: dict[str, Method] = {
    "DPO": Method(
        _pairs(pairwise.dpo_loss, beta=_same),
        "Bradley-Terry labels determine the rewards: pi* for beta = tau, for every distribution of pairs",
    ),
    "DPO, a tenth of the labels flipped": Method(
        _pairs(pairwise.dpo_loss, functools.partial(pairs_batch, flip_rate=FLIP_RATE), beta=_same),
        "flips shrink every margin",
    ),
    "robust DPO, the same labels": Method(
        _pairs(
            pairwise.robust_dpo_loss,
            functools.partial(pairs_batch, flip_rate=FLIP_RATE),
            beta=_same,
            flip_rate=FLIP_RATE,
        ),
        "unbiased for the loss on clean labels: pi*",
    ),
    "cDPO, the same labels": Method(
        _pairs(
            pairwise.cdpo_loss,
            functools.partial(pairs_batch, flip_rate=FLIP_RATE),
            beta=_same,
            label_smoothing=FLIP_RATE,
        ),
        "smooths labels that are already flipped: margins shrink twice",
    ),
    "soft preferences (OSP), exact p": Method(
        _pairs(soft_preference.osp_loss, _soft_labels, beta=_same),
        "the expectation of DPO over labels: pi*",
    ),
    "SELM, alpha 0.1": Method(
        _pairs(pairwise.selm_loss, _with_third, beta=_same, alpha=0.1),
        "the bonus for leaving pi_ref is unbounded below; at large beta gradient descent stays near DPO's optimum",
    ),
    "DPO on argmax labels": Method(
        _pairs(pairwise.dpo_loss, _argmax_labels, beta=_same),
        "no finite optimum: the margins of certain labels grow without bound",
    ),
    "REBEL, two-sample DRO": Method(
        _pairs(pairwise.rebel_loss, functools.partial(pairs_batch, labels=False), eta=_inverse),
        "differences cancel the value: pi* for every mu with full support",
    ),
    "IPO (sums)": Method(
        _pairs(pairwise.ipo_loss, tau=_same, length_average=False),
        "pi_ref exp(E_mu P(y > y') / tau): bounded preferences instead of rewards",
        _ipo_target,
    ),
    "hinge": Method(
        _pairs(pairwise.hinge_loss, beta=_same), "margins of 1 / beta, independent of the rewards"
    ),
    "SLiC-HF": Method(
        _pairs(pairwise.slic_loss),
        "no reference policy; margins of 1 and the likelihood of chosen ones",
    ),
    "RPO, uniform contrast": Method(
        _responses(
            contrastive.rpo_unpaired_uniform_loss,
            _each_once,
            whole_batch=True,
            beta=_same,
            threshold=0.0,
        ),
        "compares responses across prompts, so log Z(x) stays in the margin; binary labels",
    ),
    "JPO in the batch": Method(
        _responses(joint_preference.in_batch_jpo_loss, _each_once, whole_batch=True, beta=_same),
        "labels by argmax and across prompts: no finite optimum",
    ),
    "InfoNCA": Method(
        _responses(
            listwise.infonca_loss,
            _each_once,
            beta=1.0,
            alpha=_same,
        ),
        "softmax cross entropy over the listed responses: pi* for alpha beta = tau",
    ),
    "NCA, responses of pi_ref": Method(
        _responses(
            listwise.nca_loss,
            lambda bandit: counted_batch(bandit, np.exp(bandit.reference_log_probs)),
            beta=1.0,
            alpha=_same,
        ),
        "absolute levels log(K q) are log-ratios of a normalised policy only for responses of pi_ref and beta = 1",
    ),
    "NCA, responses of mu": Method(
        _responses(listwise.nca_loss, beta=1.0, alpha=_same),
        "the levels assume responses of pi_ref",
    ),
    "AGRO (variance within a prompt)": Method(
        _responses(regression.agro_loss, temperature=_same),
        "r - tau l is constant within a prompt exactly at pi*",
    ),
    "A*-PO, exact V*": Method(
        _responses(
            regression.astar_po_loss,
            lambda bandit: with_reference_rewards(bandit, bandit_batch(bandit)),
            beta1=_same,
            beta2=_same,
        ),
        "DRO with V* estimated from samples of pi_ref: pi*",
    ),
    "QRPO": Method(
        _responses(
            regression.qrpo_loss,
            lambda bandit: with_reference_rewards(bandit, bandit_batch(bandit)),
            beta=_same,
        ),
        "quantiles instead of rewards; its Z assumes that ranks are uniform, and those of five responses are not",
    ),
    "Reward Partitioning (RPO)": Method(
        _responses(regression.reward_partitioning_loss, temperature=_same),
        "a heuristic: its V sums over logged responses, weighted by pi_ref",
    ),
    "mean reward for V* (Kimi)": Method(
        _responses(regression.kimi_loss, temperature=_same),
        "tau log Z replaced by the mean reward of mu: biased at every tau, as mu is not pi_ref",
    ),
    "SFT": Method(
        _responses(policy_gradient.nll_loss),
        "mu",
        _behaviour_tilted(lambda b, _: np.ones_like(b.rewards)),
    ),
    "filtered SFT": Method(
        _responses(weighted_likelihood.filtered_sft_loss, threshold=0.0),
        "mu where the reward is above 0",
        _behaviour_tilted(lambda b, _: (b.rewards > 0).astype(float)),
    ),
    "reward-weighted regression": Method(
        _responses(
            weighted_likelihood.reward_weighted_regression_loss,
            whole_batch=True,
            temperature=_same,
            max_weight=1e6,
        ),
        "mu exp(r / tau): tilts mu instead of pi_ref",
        _behaviour_tilted(lambda b, tau: np.exp((b.rewards - b.rewards.max()) / tau)),
    ),
    "weighted behaviour cloning": Method(
        _responses(weighted_likelihood.weighted_behaviour_cloning_loss, _nonnegative_feedback),
        "mu r",
        _behaviour_tilted(lambda b, _: b.rewards - b.rewards.min()),
    ),
    "A-LoL": Method(
        _responses(policy_gradient.a_lol_loss, _advantages),
        "policy gradient without a regulariser: mu max(A, 0) times clipped importance weights",
    ),
    "A-LoL, reference-free": Method(
        _responses(policy_gradient.a_lol_reference_free_loss, _advantages),
        "mu max(A, 0)",
        _behaviour_tilted(lambda b, _: np.maximum(_true_advantages(b), 0)),
    ),
    "BCO": Method(
        _responses(
            unpaired.bco_loss,
            statistics=unpaired.RunningMean(),
            beta=_same,
            desirable_threshold=0.0,
        ),
        "a classifier of thumbs: labels without noise have no finite optimum",
    ),
    "APO-zero, unpaired": Method(
        _responses(unpaired.apo_zero_unpaired_loss, beta=_same, desirable_threshold=0.0),
        "no finite optimum: every log-ratio grows or falls without bound",
    ),
}


def _true_advantages(bandit: Bandit) -> np.ndarray:
    value = np.sum(np.exp(bandit.reference_log_probs) * bandit.rewards, axis=-1, keepdims=True)
    return bandit.rewards - value


def section(temperatures: tuple[float, ...], steps: int = STEPS) -> str:
    """Trains every method at every temperature and returns a Markdown section."""
    bandit = make_bandit()
    lines = [
        "## Other methods\n",
        f"{steps:,} steps of Adam with a cosine schedule from {LEARNING_RATE}. Pairs: all ordered pairs, with Bradley-Terry labels under "
        "the rewards",
        "themselves, in exact expectation. Lists: all five responses. The cells are as above; a method reaches pi* if its KL is below "
        "1e-4 at every",
        "tau. Many methods have another optimum. Where it is known in closed form, `own optimum` is KL(own optimum || pi), the largest "
        "over tau: a",
        "small number means that the method reached its own optimum.\n",
        "| method | "
        + " | ".join(f"tau {tau:g}" for tau in temperatures)
        + " | own optimum | reaches pi* | reason |",
        "|---" * (len(temperatures) + 4) + "|",
    ]
    for name, method in METHODS.items():
        cells, own, reached = [], [], []
        for tau in temperatures:
            objective, batch = method.make(bandit, tau)
            policy = solve(
                bandit,
                objective,
                steps=steps,
                batch=batch,
                optimizer=adamw(LEARNING_RATE, schedule="cosine", total_steps=steps),
            )
            outcome = judge(bandit, policy, tau)
            cells.append(cell(outcome))
            reached.append(outcome.divergence < 1e-4)
            if method.target is not None:
                own.append(divergence(method.target(bandit, tau), policy))
        which = [f"{tau:g}" for tau, hit in zip(temperatures, reached, strict=True) if hit]
        verdict = "yes" if all(reached) else f"at tau {', '.join(which)}" if which else "no"
        optimum = "" if not own else "< 1e-6" if max(own) < 1e-6 else f"{max(own):.1g}"
        lines.append(f"| {name} | {' | '.join(cells)} | {optimum} | {verdict} | {method.reason} |")
    return "\n".join(lines) + "\n"
