"""Estimates the density ratio of prompts between desirable and undesirable responses, with a classifier on prompt embeddings."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from jaxalign.errors import UserError
from jaxalign.losses.hyperparameters import require_positive

# Every loss that reads density ratios clips the exp of larger values.
_MAX_LOGIT = 30.0
_MAX_STEPS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticRegression:
    """A fitted classifier: ``P(label | features) = sigmoid(features @ weights + intercept)``."""

    weights: Float[np.ndarray, " features"]
    intercept: float

    def logits(self, features: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " rows"]:
        """Returns the log-odds of the label."""
        return np.asarray(features, np.float64) @ self.weights + self.intercept


def fit_logistic_regression(
    features: Float[np.ndarray, "rows features"],
    labels: Bool[np.ndarray, " rows"],
    *,
    regularization: float = 1.0,
) -> LogisticRegression:
    """Fits a classifier with balanced classes by Newton's method, in float64.

    Minimises ``regularization/2 |weights|^2 + sum_i c_i (-log P(label_i))``, where ``c_i = rows / (2 rows of the label)`` gives both labels
    the same weight. The intercept is not regularised. This equals scikit-learn's ``LogisticRegression(class_weight='balanced')``.

    Args:
      features: any real numbers.
      labels: true or false; both must occur.
      regularization: the inverse of scikit-learn's ``C``.

    Raises:
      UserError: if only one label occurs, a feature is not finite, or regularization is not positive.
    """
    require_positive("fit_logistic_regression", regularization=regularization)
    labels = np.asarray(labels, bool)
    features = np.asarray(features, np.float64)
    if labels.all() or not labels.any():
        raise UserError(
            f"density ratios need prompts of desirable and of undesirable responses, but all {labels.size} are of one kind"
        )
    if not np.isfinite(features).all():
        raise UserError(f"features {features.shape} hold NaN or Inf")
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    counts = np.where(labels, labels.sum(), (~labels).sum())
    class_weights = len(labels) / (2 * counts)
    penalties = np.append(np.full(features.shape[1], float(regularization)), 0.0)
    parameters = np.zeros(inputs.shape[1])

    def loss(parameters: np.ndarray) -> float:
        logits = inputs @ parameters
        losses = np.logaddexp(0, np.where(labels, -logits, logits))
        return float(class_weights @ losses + 0.5 * penalties @ parameters**2)

    current = loss(parameters)
    for _ in range(_MAX_STEPS):
        probabilities = _sigmoid(inputs @ parameters)
        gradient = inputs.T @ (class_weights * (probabilities - labels)) + penalties * parameters
        curvature = class_weights * probabilities * (1 - probabilities)
        hessian = (inputs.T * curvature) @ inputs + np.diag(penalties + 1e-12)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        # The loss is convex, so a sufficiently short step lowers it until only rounding errors remain.
        while scale > 1e-8 and loss(parameters - scale * step) > current:
            scale /= 2
        parameters = parameters - scale * step
        previous, current = current, loss(parameters)
        if previous - current <= 1e-12 * max(1.0, abs(current)):
            break
    return LogisticRegression(weights=parameters[:-1], intercept=float(parameters[-1]))


def density_ratios(
    prompt_embeddings: Float[np.ndarray, "rows features"],
    desirable: Bool[np.ndarray, " rows"],
    *,
    regularization: float = 1.0,
    max_rows: int | None = 512,
    seed: int = 0,
    evaluate_on: Float[np.ndarray, "others features"] | None = None,
) -> Float[np.ndarray, " ratios"]:
    """Returns ``p(desirable | x) / p(undesirable | x)`` of every response's prompt, for `unpaired.density_weighted_bco_loss`.

    The classifier is balanced, so this estimates ``p(x | desirable) / p(x | undesirable)`` (arXiv 2404.04656, underlying distribution
    matching; details follow the public code of TRL). The loss clips the ratios.

    Args:
      prompt_embeddings: one row per response, for example mean-pooled encoder states of the reference policy.
      desirable: the labels of the responses.
      regularization: as in `fit_logistic_regression`.
      max_rows: the maximum number of responses of each label to fit, drawn without replacement; None for all.
      seed: the seed of that draw.
      evaluate_on: the embeddings of other prompts, whose ratios are returned instead.

    Raises:
      UserError: as `fit_logistic_regression`.
    """
    generator = np.random.default_rng(seed)
    labels = np.asarray(desirable, bool)
    fitted = [
        generator.permutation(np.flatnonzero(labels == label))[:max_rows] for label in (True, False)
    ]
    rows = np.sort(np.concatenate(fitted))
    classifier = fit_logistic_regression(
        prompt_embeddings[rows], labels[rows], regularization=regularization
    )
    logits = classifier.logits(prompt_embeddings if evaluate_on is None else evaluate_on)
    return np.exp(np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
