"""Judges, which are plug-ins that score responses. A higher score is better.

The command line names a judge as `name`, `name:argument`, or `module:function`. The last form is for
your own judges: any importable function (prompts, responses, references) -> one number per response.

    @register_judge("polite")
    def polite(argument):
        return FunctionJudge("polite", lambda prompts, responses, references: [...])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from jaxalign.annotation.llm_scores import LLMScores
from jaxalign.annotation.reward_judges import (
    FeatureRewardJudge,
    RewardModelJudge,
    judging_encoder,
)
from jaxalign.data import slots, synthetic
from jaxalign.data.evaluation_records import prompt_of
from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.synthetic import SlotErrors
from jaxalign.errors import UserError
from jaxalign.interop.opening import open_run
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.plugins import Registry
from jaxalign.runs.folder import TrainedNetwork

References = Sequence[Sequence[str]]
JudgeFunction = Callable[[Sequence[str], Sequence[str], References | None], Any]


class Judge(Protocol):
    """Scores responses to prompts.

    A judge that cannot judge every prompt may have a method ``check(prompts, references)`` that raises `UserError`. It is called before
    anything is generated.
    """

    name: str

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: References | None = None,
    ) -> Float[np.ndarray, " items"]:
        """Returns one finite number for each (prompt, response). A higher number is better.

        Args:
          prompts, responses: [items].
          references: for each item any number of texts: the reference responses of each prompt, if there are any.
        """


def check_prompts(judge: Judge, prompts: Sequence[str], references: References) -> None:
    """Raises `UserError` if a judge reports that it cannot judge responses to these prompts."""
    check = getattr(judge, "check", None)
    if check is not None:
        check(prompts, references)


def checked_scores(
    judge: Judge,
    prompts: Sequence[str],
    responses: Sequence[str],
    references: References | None = None,
) -> Float[np.ndarray, " items"]:
    """Returns a judge's scores as float64; refuses them unless there is one finite number per response."""
    scores = np.asarray(judge.score(prompts, responses, references), np.float64)
    if scores.shape != (len(responses),):
        raise UserError(
            f"judge '{judge.name}' gave scores of shape {scores.shape} for {len(responses)} "
            "responses; it must give one number each."
        )
    if not np.all(np.isfinite(scores)):
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(
            f"judge '{judge.name}' gave {scores[bad]} for response {bad} "
            f"(prompt {prompts[bad][:60]!r}); scores must be finite."
        )
    return scores


class FunctionJudge:
    """A judge that calls a function (prompts, responses, references) -> scores."""

    def __init__(
        self,
        name: str,
        function: JudgeFunction,
        check: Callable[[Sequence[str], References], None] | None = None,
    ) -> None:
        self.name = name
        self._function, self._check = function, check

    def check(self, prompts: Sequence[str], references: References) -> None:
        """Raises `UserError` for prompts that the function cannot judge."""
        if self._check is not None:
            self._check(prompts, references)

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: References | None = None,
    ) -> Float[np.ndarray, " items"]:
        return np.asarray(self._function(prompts, responses, references), np.float64)


# A factory takes the text after the judge's name.
_REGISTRY: Registry[Judge] = Registry("judge", FunctionJudge, settings=False)
register_judge = _REGISTRY.register
judge_names = _REGISTRY.names


def get_judge(spec: str) -> Judge:
    """Returns the judge that a command line names: `name`, `name:argument` or `module:function`.

    Raises:
      UserError: the name is unknown, the module cannot be imported, or the module has no such function.
    """
    return _REGISTRY.build(spec)


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise UserError(f"judge '{name}' takes no argument, got '{argument}'.")


@register_judge("slot_error")
def slot_error_judge(argument: str) -> Judge:
    """Builds the judge `slot_error` or `slot_error:<JSON Lines file with the training acts>`."""
    if not argument:
        return SlotErrorJudge()
    return SlotErrorJudge(
        prompt_of(record, "prompt", argument, number)
        for number, record in read_json_objects(argument)
    )


class SlotErrorJudge:
    """An exact oracle that scores minus the fraction of an act's slots that a response leaves out or invents.

    It reads the acts of the bundled task and those of `jaxalign.data.slots`. For the latter, it recognises
    invented values by the values of other acts: the given acts, or otherwise all acts that it judges
    together.
    """

    name = "slot_error"

    def __init__(self, known_acts: Iterable[str] | None = None) -> None:
        self.known_acts = None if known_acts is None else list(known_acts)

    def count(self, prompts: Sequence[str], responses: Sequence[str]) -> list[SlotErrors]:
        """Counts the missing and invented slots of every response, and the slots of its act.

        Raises:
          UserError: a prompt is not a dialogue act.
        """
        acts = prompts if self.known_acts is None else self.known_acts
        try:
            lexicon = slots.Lexicon(act for act in acts if not synthetic.is_act(act))
            return [
                synthetic.slot_errors(prompt, response)
                if synthetic.is_act(prompt)
                else slots.slot_errors(prompt, response, lexicon)
                for prompt, response in zip(prompts, responses, strict=True)
            ]
        except ValueError as error:
            raise UserError(f"judge 'slot_error' needs dialogue acts as prompts: {error}") from None

    def check(self, prompts: Sequence[str], references: References) -> None:
        """Raises `UserError` for a prompt that is not a dialogue act."""
        del references
        self.count(prompts, [""] * len(prompts))

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: References | None = None,
    ) -> Float[np.ndarray, " items"]:
        return np.array([-errors.rate for errors in self.count(prompts, responses)])


@register_judge("exact_match")
def exact_match_judge(argument: str) -> Judge:
    """Builds a judge that scores 1 if a response equals one of the references up to white space, else 0."""
    _no_argument("exact_match", argument)

    def check(prompts: Sequence[str], references: References | None) -> None:
        if references is None or len(references) != len(prompts):
            raise UserError(
                "judge 'exact_match' needs references beside the prompts: give every line the field 'references', 'reference', "
                "'target' or 'response'."
            )
        for prompt, known in zip(prompts, references, strict=True):
            if not known:
                raise UserError(f"judge 'exact_match': no reference for prompt {prompt[:60]!r}.")

    def score(
        prompts: Sequence[str], responses: Sequence[str], references: References | None
    ) -> Any:
        check(prompts, references)
        return [
            float(_squeezed(response) in {_squeezed(text) for text in known})
            for response, known in zip(responses, references or (), strict=True)
        ]

    return FunctionJudge("exact_match", score, check)


@register_judge("length")
def length_judge(argument: str) -> Judge:
    """Builds a judge that scores the number of characters. It is a baseline that any judge must beat."""
    _no_argument("length", argument)
    return FunctionJudge("length", lambda _, responses, __: [len(text) for text in responses])


@register_judge("reward_model")
def reward_model_judge(argument: str) -> Judge:
    """Builds the judge `reward_model:<run folder or checkpoint>` from a run that trained a network in the role `reward`."""
    if not argument:
        raise UserError("judge 'reward_model' needs a checkpoint: reward_model:<run folder>.")
    return judge_of_reward(open_run(argument).reward())


def judge_of_reward(run: TrainedNetwork) -> Judge:
    """Returns the judge that applies an open reward network, of text or of features."""
    if isinstance(run.network, FeatureReward):
        return FeatureRewardJudge(run)
    return RewardModelJudge(run.network, run.params, judging_encoder(run))


register_judge("llm")(LLMScores)


def _squeezed(text: str) -> str:
    return " ".join(text.split())
