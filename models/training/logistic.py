"""Logistic regression for a head: fitted by Newton's method, validated by source, calibrated by a temperature. Needs NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 50
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the squared weights of standardised features, relative to the mean loss."""
BINS = 15


@dataclass(frozen=True)
class Linear:
    """`logit = features @ weights + bias`: the log odds of the positive label."""

    weights: np.ndarray
    bias: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weights + self.bias


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))


def fit(features: np.ndarray, positive: np.ndarray, penalty: float) -> Linear:
    """The penalised fit, with both classes weighted equally, in the scale of the features as they are."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    used = spread > 1e-6 * max(float(spread.max()), 1e-12)
    standard = np.zeros_like(features, dtype=np.float64)
    standard[:, used] = (features[:, used] - mean[used]) / spread[used]
    design = np.concatenate([standard, np.ones((len(standard), 1))], axis=1)
    weight = np.where(positive, 0.5 / max(positive.mean(), 1e-9), 0.5 / max((~positive).mean(), 1e-9)) / len(positive)
    ridge = np.full(design.shape[1], penalty / design.shape[1])
    ridge[-1] = 0
    solution = np.zeros(design.shape[1])

    def loss(at: np.ndarray) -> float:
        signed = np.where(positive, 1, -1) * (design @ at)
        return float((weight * np.logaddexp(0, -signed)).sum() + 0.5 * (ridge * at**2).sum())

    for _ in range(STEPS):
        p = sigmoid(design @ solution)
        gradient = design.T @ (weight * (p - positive)) + ridge * solution
        curvature = (design.T * (weight * p * (1 - p))) @ design + np.diag(ridge + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        size, before = 1.0, loss(solution)
        while loss(solution - size * step) > before and size > 1e-4:
            size /= 2
        solution = solution - size * step
        if np.abs(size * step).max() < 1e-6:
            break
    weights = np.zeros(features.shape[1])
    weights[used] = solution[:-1][used] / spread[used]
    return Linear(weights, float(solution[-1] - weights @ mean))


def out_of_fold(features: np.ndarray, positive: np.ndarray, folds: np.ndarray, penalty: float, extra: np.ndarray | None = None) -> np.ndarray:
    """Each image's logit by a fit on the other folds. `extra` has changed copies of the images, which only train."""
    logits = np.full(len(features), np.nan)
    for fold in np.unique(folds):
        out = folds == fold
        if positive[~out].all() or not positive[~out].any():
            continue
        train, labels = features[~out], positive[~out]
        if extra is not None:
            train, labels = np.concatenate([train, extra[~out]]), np.concatenate([labels, labels])
        logits[out] = fit(train, labels, penalty).logits(features[out])
    return logits


def choose_penalty(features: np.ndarray, positive: np.ndarray, folds: np.ndarray) -> float:
    """The penalty with the best area under the curve over the folds."""

    def quality(penalty: float) -> float:
        logits = out_of_fold(features, positive, folds, penalty)
        known = ~np.isnan(logits)
        return auc(logits[known], positive[known]) or 0.0

    return max(PENALTIES, key=quality)


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The share of pairs in order; ties count half. None where a class is missing."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(scores: np.ndarray, positive: np.ndarray) -> float:
    """The expected calibration error over 15 bins of equal width, as `pixwarden evaluate` computes it."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = [abs(scores[bins == b].sum() - positive[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(scores))


def temperature(logits: np.ndarray, positive: np.ndarray) -> float:
    """The number by which logits are divided for the smallest loss, by golden-section search over its logarithm."""

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -np.where(positive, 1, -1) * logits / np.exp(log_t)).mean())

    low, high, ratio = np.log(0.05), np.log(50.0), (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def threshold(scores: np.ndarray, positive: np.ndarray, rate: float) -> float | None:
    """The lowest score that at most this share of the negative images reach."""
    candidates = np.unique(scores)
    reached = np.array([(scores[~positive] >= at).mean() for at in candidates])
    kept = candidates[reached <= rate]
    return float(kept[0]) if len(kept) else None
