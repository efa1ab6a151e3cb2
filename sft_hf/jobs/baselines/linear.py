"""Linear classifiers as baselines: on words (TF-IDF), or on the features of a frozen model.

In the shapes, N is the number of rows and C the number of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sft_hf.core import signals
from sft_hf.jobs.baselines.base import Budget

Fit = Callable[[Any, np.ndarray], Callable[[Any], np.ndarray]]
"""Fits features of N rows to their targets, 0 or 1 [N, C]; returns a function from features to logits [N, C]."""

UNSEEN = -1e4
"""The logit of a label that no training row has."""

STRENGTH = 10.0  # C of the logistic regression on words: 1 is too strong a penalty for unit vectors
FOLDS = 3
MANY_WORDS = 1.5  # words per text; below it letters are more informative (names, languages written without spaces)


def import_scikit_learn() -> None:
    """Import scikit-learn before timing starts, so that the import does not count as time per row."""
    import sklearn.feature_extraction.text
    import sklearn.linear_model  # noqa: F401


class Words:
    """TF-IDF of words, or of 2 to 4 letters if texts are single words; one vector per column.

    Term frequencies are logarithmic, and vectors have length 1 (G. Salton and C. Buckley, Information Processing and
    Management 24, 1988).
    """

    def __init__(self, columns: Sequence[Sequence[str]]) -> None:
        """`columns`: the texts of the training rows, [columns][N]. Raises ValueError if they contain no words."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.units = "words"
        words = sum(len(text.split()) for text in columns[0]) / max(1, len(columns[0]))
        options: dict[str, Any] = {"token_pattern": r"(?u)\b\w+\b"}
        if words < MANY_WORDS:
            self.units = "letters"
            options = {"analyzer": "char_wb", "ngram_range": (2, 4)}
        self.vectorizers = [TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **options).fit(own) for own in columns]

    def __call__(self, columns: Sequence[Sequence[str]]) -> Any:
        """Return a sparse matrix with one row per text."""
        from scipy.sparse import hstack

        pairs = zip(self.vectorizers, columns, strict=True)
        return hstack([vectorizer.transform(own) for vectorizer, own in pairs], format="csr")


def logistic_on_words(features: Any, targets: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Fit one logistic regression for each label against all others; see `Fit`."""
    from sklearn.linear_model import LogisticRegression

    def one(label: np.ndarray) -> Callable[[Any], np.ndarray]:
        model = LogisticRegression(C=STRENGTH, solver="liblinear", random_state=0)
        return model.fit(features, label).decision_function  # type: ignore[no-any-return]

    return _label_by_label(targets, one)


def logistic_on_features(features: Any, targets: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Fit logistic regression on standardized features [N, F]; see `Fit`.

    Multinomial if each row has exactly one label, otherwise one binary regression per label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def regression() -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    if (targets.sum(axis=1) != 1).any():
        return _label_by_label(targets, lambda label: regression().fit(features, label).decision_function)
    model = regression().fit(features, targets.argmax(axis=1))

    def logits(rows: Any) -> np.ndarray:
        scores = np.full((rows.shape[0], targets.shape[1]), UNSEEN, dtype=np.float32)
        scores[:, model.classes_] = model.predict_log_proba(rows)
        return scores

    return logits


def _label_by_label(
    targets: np.ndarray, fit: Callable[[np.ndarray], Callable[[Any], np.ndarray]]
) -> Callable[[Any], np.ndarray]:
    """Fit each label, except those that no row or every row has. Raises Terminated between two labels."""
    known: dict[int, Callable[[Any], np.ndarray]] = {}
    always = targets.all(axis=0)
    for label in np.flatnonzero(targets.any(axis=0) & ~always).tolist():
        signals.poll()
        known[label] = fit(targets[:, label])

    def logits(features: Any) -> np.ndarray:
        scores = np.full((features.shape[0], targets.shape[1]), UNSEEN, dtype=np.float32)
        scores[:, always] = -UNSEEN
        for label, function in known.items():
            scores[:, label] = function(features)
        return scores

    return logits


def cross_fitted(fit: Fit, features: Any, targets: np.ndarray) -> np.ndarray:
    """Return the logits of the training rows [N, C], each from a model that was not fitted to the row; N >= 2."""
    folds = np.random.default_rng(0).permutation(len(targets)) % min(FOLDS, len(targets))
    scores = np.empty(targets.shape, dtype=np.float32)
    for fold in np.unique(folds):
        held_out = folds == fold
        scores[held_out] = fit(features[~held_out], targets[~held_out])(features[held_out])
    return scores


def fitted_within(fit: Callable[[np.ndarray], Any], order: np.ndarray, first: int, budget: Budget) -> Any:
    """Fit to as many rows as time allows, estimated from the time of a first fit to a few rows.

    Args:
        fit: fits a model to row indices, ascending.
        order: random order of the rows; the first ones are a sample.
        first: number of rows of the first fit, regardless of time.
        budget: the time budget.
    """
    started = budget.clock()
    fitted = fit(np.sort(order[:first]))
    affordable = min(len(order), budget.rows(first, budget.clock() - started))
    if len(order) <= first or affordable < 2 * first:  # no more rows, or few more
        return fitted
    return fit(np.sort(order[:affordable]))
