"""Gathers the results of an evaluation policy by policy."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.annotation import judges as judging
from jaxalign.data.evaluation_set import EvaluationSet, FeedbackRecord
from jaxalign.errors import UserError
from jaxalign.evaluation import ranking
from jaxalign.evaluation.calibration import Calibration, dro_targets
from jaxalign.evaluation.measure import Answers, Evaluator, value_report
from jaxalign.evaluation.settings import EvaluationSettings
from jaxalign.evaluation.statistics import bootstrap_mean
from jaxalign.runs.folder import TrainedNetwork


@dataclasses.dataclass
class Comparison:
    """Results gathered policy by policy, so that only one policy at a time is in memory.

    Attributes:
      data: the prompts, references and feedback.
      settings: the settings of the evaluation.
      reference: the policy against which KL and log-ratios are computed.
      panel: the judges; empty if nothing is generated.
      reports: the part of evaluation.json about each policy.
      answers, scores: results by policy; scores are first by judge.
      training: logged responses that the runs may have been trained on, to compare values on them with those on held-out ones.
      calibrations: by policy, the calibration of its value on ``held out`` and on ``training`` responses.
      logged: by policy, the log-ratio of each logged response, and V and the residual if the run has a value network.
      linear: the predictions of the TF-IDF baseline for the logged responses, if there is a baseline.
    """

    data: EvaluationSet
    settings: EvaluationSettings
    reference: TrainedNetwork
    panel: Sequence[judging.Judge]
    reports: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    answers: dict[str, Answers] = dataclasses.field(default_factory=dict)
    scores: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    training: Sequence[FeedbackRecord] = ()
    calibrations: dict[str, dict[str, Calibration]] = dataclasses.field(default_factory=dict)
    logged: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    linear: np.ndarray | None = None
    _reference_log_probs: np.ndarray | None = None
    _reference_in_training: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.evaluator = Evaluator(self.data, self.settings)

    @property
    def kl_samples(self) -> int:
        """The number of responses to each prompt for the KL; with 0, or if nothing is generated, the KL is left out."""
        return 0 if self.settings.ranking_only else self.settings.kl_samples

    def measure(self, name: str, path: str, run: TrainedNetwork) -> None:
        """Adds all results of one policy."""
        report: dict[str, Any] = {"checkpoint": path, "step": run.step}
        report["objective"] = run.run.description.method
        report["is_reference"] = run is self.reference
        self.reports[name] = report
        shares, cut = self.evaluator.describe_prompts(run)
        report.update(shares)
        if cut:
            print(f"{name}: {cut}", file=sys.stderr)
        if self.panel:
            self._judge(name, run, report)
        if self.kl_samples:
            self._check_vocabulary(name, run)
            report["kl"] = self.evaluator.kl(run, self.reference, self.kl_samples).to_dict()
        if self.data.feedback:
            self._check_vocabulary(name, run)
            self._use_feedback(name, path, run, report)

    def _judge(self, name: str, run: TrainedNetwork, report: dict[str, Any]) -> None:
        data = self.data
        answers = self.answers[name] = self.evaluator.answer(run)
        report.update(answers.describe())
        report["rewards"] = {}
        for judge in self.panel:
            scores = judging.checked_scores(judge, data.prompts, answers.responses, data.references)
            self.scores.setdefault(judge.name, {})[name] = scores
            estimate = bootstrap_mean(
                scores, samples=self.settings.bootstrap, seed=self.settings.seed
            )
            report["rewards"][judge.name] = estimate.to_dict()
            if isinstance(judge, judging.SlotErrorJudge):
                counts = judge.count(data.prompts, answers.responses)
                slots = sum(errors.total for errors in counts)
                # This rate is over all slots of the set, while the judge's score averages over prompts.
                report["slot_error_rate"] = sum(errors.errors for errors in counts) / max(slots, 1)

    def _use_feedback(
        self,
        name: str,
        path: str,
        run: TrainedNetwork,
        report: dict[str, Any],
    ) -> None:
        records = self.data.feedback
        feedback = np.array([record.feedback for record in records])
        if self._reference_log_probs is None:
            self._reference_log_probs = self.evaluator.feedback_log_probs(self.reference)
        same = run is self.reference
        own = self._reference_log_probs if same else self.evaluator.feedback_log_probs(run)
        values = None
        log_ratios = own - self._reference_log_probs
        self.logged[name] = {"log_ratio": log_ratios}
        if run.run.has_value_network():
            values = self.evaluator.feedback_values(run.run.value())
            targets = dro_targets(run.run.standardized(feedback), log_ratios, run.run.temperature)
            self.logged[name] |= {"value": values, "residual": targets - values}
            prompts = [record.prompt_key for record in records]
            found = {"held out": value_report(run, values, log_ratios, feedback, prompts)}
            if self.training:
                found["training"] = self._values_in_training(run)
            self.calibrations[name] = {
                where: calibrated for where, (calibrated, _) in found.items()
            }
            report["value"] = {where: described for where, (_, described) in found.items()}
        methods = ranking.ranking_scores(
            own,
            self._reference_log_probs,
            [record.response for record in records],
            tau=run.run.temperature,
            values=values,
            linear=self.linear,
        )
        ranked = ranking.rank_methods(
            methods,
            feedback,
            [record.prompt_key for record in records],
            bootstrap=self.settings.bootstrap // 5,
            seed=self.settings.seed,
        )
        report["ranking"] = {method: result.to_dict() for method, result in ranked.items()}

    def _values_in_training(self, run: TrainedNetwork) -> tuple[Calibration, dict[str, Any]]:
        evaluator = Evaluator(EvaluationSet(feedback=list(self.training)), self.settings)
        if self._reference_in_training is None:
            self._reference_in_training = evaluator.feedback_log_probs(self.reference)
        own = evaluator.feedback_log_probs(run)
        return value_report(
            run,
            evaluator.feedback_values(run.run.value()),
            own - self._reference_in_training,
            np.array([record.feedback for record in self.training]),
            [record.prompt_key for record in self.training],
        )

    def _check_vocabulary(self, name: str, run: TrainedNetwork) -> None:
        mine, theirs = (each.run.recorded_vocabulary for each in (run, self.reference))
        if mine is None or theirs is None or not mine.agrees_with(theirs):
            raise UserError(
                f"policy '{name}' and the reference have different vocabularies, so their "
                "log-probabilities cannot be compared; give another reference."
            )
