"""SoftmaxRegression: a scikit-learn classifier trained by the closed-form gradient (P − Y)ᵀX/N."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from xent.api.cross_entropy import log_softmax

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_is_fitted, validate_data

    from xent.files import storage
    from xent.regression import features, serialization
    from xent.regression.calibration import fit_temperature
    from xent.regression.class_targets import ClassTargets, listed, make_target, read_targets, require_labels
    from xent.regression.objective import Objective, as_logits
    from xent.regression.parameters import check_parameters
    from xent.regression.solvers import minimise
    from xent.regression.solvers.sgd import one_pass
except ModuleNotFoundError as error:
    message = f"SoftmaxRegression needs {error.name}: pip install 'xent[fit]'"
    raise ModuleNotFoundError(message, name=error.name) from error

Array = np.ndarray[Any, Any]


class Step(NamedTuple):
    """One step of the training, as a ``callback`` receives it."""

    iteration: int
    objective: float  # mean loss + penalty, nats
    coef: Array  # as `coef_`, float64
    intercept: Array
    optimality_gap: float | None  # bound on the relative distance from the optimum, if there is one


class SoftmaxRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multinomial logistic regression: the mean cross-entropy (4) plus ``alpha/2·‖W‖²``.

    scikit-learn's ``C`` is ``1/(alpha·D)``, D being the sum of ``sample_weight`` times class weight, which
    without either is N; the intercept is not penalised. With two classes there is one score, the logit of
    ``classes_[1]`` against 0, as in scikit-learn; with more the rows of W have mean 0, and so have the
    intercepts. Bring the features to one scale first, as the penalty is one for all. Float32 features stay
    float32, CSR matrices sparse.

    Parameters
    ----------
    alpha : float >= 0, default 1e-3
        Strength of the L2 penalty.
    fit_intercept : bool, default True
    solver : {"auto", "lbfgs", "newton-cg", "sgd"}, default "auto"
        "auto" chooses by the shape of X; all end at the same optimum. `partial_fit` is always "sgd".
    max_iter : int >= 0, default 1000
        Steps of the solver (of "sgd": passes over X); ConvergenceWarning if they do not suffice.
    tol : float >= 0, default 1e-4
        Training ends when `optimality_gap_` is at most this (under focal loss: when the next step promises
        no larger decrease, relative to the objective).
    class_weight : dict {label: weight}, "balanced" or None, default None
        Factor of each class, 1 where not given; "balanced" is ``Σω / (K·Σω_k)``.
    label_smoothing, smoothing_over, focal_gamma
        As for `xent.cross_entropy`. The focal loss is not convex: the solver ends where the gradient
        vanishes, and there is no certificate.
    warm_start : bool, default False
        Start `fit` from the last coefficients, not from 0, if the number of features is the same. A class in
        both fits keeps its row, a new class starts at 0, and a class missing in the new ``y`` is dropped.
    random_state : int, numpy RandomState or None, default None
        Order of the rows under "sgd".
    verbose : bool or int >= 0, default False
        Print the objective at each step, unless it is 0 or False.
    callback : callable, default None
        Called with a `Step` at each step.

    Attributes
    ----------
    classes_ : (K,) array of the labels, sorted; 0 to K−1 where ``y`` was rows of probabilities
    coef_ : (K, D) array of the dtype of X, (1, D) for two classes
    intercept_ : (K,) array, (1,) for two classes; zeros without an intercept
    temperature_ : float
        T of ``softmax(scores/T)`` in `predict_proba` and `predict_log_proba`: 1 until
        `calibrate_temperature`, and again after each `fit` and `partial_fit`.
    optimality_gap_ : float or None
        Bound on ``(F − F*)/F``: by what part of itself the objective is above its minimum at most. None
        under focal loss and after `partial_fit`.
    solver_ : str
        The solver that ran.
    n_iter_ : int
    loss_curve_ : list of float
        The objective at the start and after each step, nats; after `partial_fit` the objective of each
        batch before its step.
    n_features_in_ : int, and feature_names_in_ : (D,) array if X has names for its columns

    Raises
    ------
    TypeError, ValueError
        For a parameter, or for data, out of place, naming the expectation and the value.

    Examples
    --------
    >>> import numpy as np, xent
    >>> X, y = np.array([[0.0], [1.0], [3.0], [4.0]]), ["no", "no", "yes", "yes"]
    >>> model = xent.SoftmaxRegression().fit(X, y)
    >>> model.predict([[0.5], [3.5]])
    array(['no', 'yes'], dtype='<U3')
    >>> model.optimality_gap_ <= model.tol
    True

    Probabilities in the place of labels:

    >>> q = np.array([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    >>> xent.SoftmaxRegression().fit(X, q).predict_proba([[2.0]]).round(2)
    array([[0.5, 0.5]])
    """

    def __init__(
        self,
        *,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        solver: Literal["auto", "lbfgs", "newton-cg", "sgd"] = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        smoothing_over: Literal["all", "others"] = "all",
        focal_gamma: float = 0.0,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool | int = False,
        callback: Callable[[Step], None] | None = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.smoothing_over = smoothing_over
        self.focal_gamma = focal_gamma
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train from 0 (see ``warm_start``).

        Parameters
        ----------
        X : (N, D) array or CSR matrix of floats; float32 or float64 are kept
        y : (N,) labels of any kind, or (N, K) floats: rows of probabilities of the classes 0 to K−1
        sample_weight : (N,) array >= 0, default None for 1
        """
        targets, objective, attributes = self._prepare(X, y, sample_weight)
        curve: list[float] = []

        def on_step(parameters: Array, value: float, gap: float | None) -> None:
            curve.append(value)
            step = Step(len(curve), value, *objective.unpack(parameters), gap)
            if self.verbose:
                print(_progress(step))
            if self.callback is not None:
                self.callback(step)

        result = minimise(
            objective,
            self._start(objective, targets.classes, warm=self.warm_start),
            solver=self.solver,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=self.random_state,
            on_step=on_step,
        )
        self._set_result(objective, result.params, attributes)
        self.classes_ = targets.classes
        self.loss_curve_ = [result.start_value, *curve]
        self.n_iter_ = result.n_iter
        self.optimality_gap_ = result.optimality_gap
        self.solver_ = result.solver
        self.__dict__.pop("_stream", None)
        if result.message:
            warnings.warn(f"SoftmaxRegression {result.message}", ConvergenceWarning, stacklevel=2)
        return self

    def calibrate_temperature(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Set ``temperature_`` to the T that minimises the cross-entropy on these rows, best held-out ones.

        It changes `predict_proba` and `predict_log_proba`, and neither `predict` nor `decision_function`.

        Parameters
        ----------
        X, y, sample_weight : as for `fit`; ``y`` may lack some of ``classes_``

        Raises
        ------
        ValueError
            If no finite temperature > 0 is best: `xent.regression.calibration.fit_temperature`.
        """
        scores = self._scores(X)
        targets = read_targets(scores, y, sample_weight, self.classes_)
        self.temperature_ = fit_temperature(as_logits(scores), targets.targets, targets.weight)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One pass of "sgd" over a batch, from where the last call or `fit` ended.

        For data that are read in batches: repeated over all of them it tends to the optimum of `fit`. Each
        batch's mean loss is taken for that of all rows, so batches should have about the same size and mix
        the classes. "balanced" class weights are computed from all rows so far.

        Parameters
        ----------
        X, sample_weight : as for `fit`
        y : as for `fit`; labels may lack some of the classes
        classes : (K,) array of all labels, default None
            Needed at the first call, unless ``y`` is rows of probabilities.
        """
        state, earlier_mass = getattr(self, "_stream", (None, 0.0))
        all_classes = self._all_classes(classes, y)
        targets, objective, attributes = self._prepare(X, y, sample_weight, all_classes, earlier_mass)
        curve, passes = ([], 0) if state is None else (self.loss_curve_, self.n_iter_)
        start = self._start(objective, targets.classes, warm=True)
        value = objective(start)[0]
        parameters, state = one_pass(objective, start, state, self.random_state)
        self._set_result(objective, parameters, attributes)
        self._stream = (state, earlier_mass + targets.mass)
        self.classes_ = targets.classes
        self.loss_curve_, self.n_iter_ = [*curve, value], passes + 1
        self.optimality_gap_, self.solver_ = None, "sgd"
        return self

    def decision_function(self, X: Any) -> Array:
        """Scores (N, K): logits; with two classes (N,), the logit of ``classes_[1]``."""
        scores = self._scores(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """The label of the highest score, (N,)."""
        scores = self._scores(X)
        best = (scores[:, 0] > 0).astype(int) if len(self.classes_) == 2 else scores.argmax(1)
        return np.asarray(self.classes_[best])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean accuracy; for ``y`` of probabilities (N, K), the mean of those of the predicted classes."""
        if np.ndim(y) != 2 or np.shape(y)[1] == 1:
            require_labels(y)
            return float(super().score(X, y, sample_weight))
        scores = self._scores(X)
        targets = read_targets(scores, y, sample_weight, self.classes_)
        best = as_logits(scores).argmax(1)
        return float(np.average(targets.targets[np.arange(len(best)), best], weights=targets.weight))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (N, K), in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Array:
        """Log-probabilities (N, K), from the scores: finite where the probability underflows."""
        scores = as_logits(self._scores(X))
        return log_softmax(scores / scores.dtype.type(self.temperature_))

    def objective(self, X: Any, y: Any, sample_weight: Any = None) -> Objective:
        """The function that `fit` minimises on these data, with everything checked."""
        return self._prepare(X, y, sample_weight)[1]

    def contents(self) -> storage.Contents:
        """The contents that `save` writes, for a file that holds more than the estimator."""
        check_is_fitted(self)
        contents = serialization.encode(self)
        contents.metadata["versions"] = versions()
        return contents

    @classmethod
    def from_contents(cls, contents: storage.Contents) -> Self:
        """The inverse of `contents`; ValueError for other contents."""
        return serialization.decode(cls, contents)

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator, without ``callback``, to one safetensors file, atomically.

        The state of `partial_fit` beside the parameters (momentum, counts of classes) is not saved: on a
        loaded estimator `partial_fit` continues as after `fit`. A pickle keeps this state.
        Raises OSError if the file cannot be written, ValueError for labels that are neither numbers nor text.
        """
        storage.save(self.contents(), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator in the file at ``path``; nothing in it is executed.

        Raises OSError if the file cannot be read, ValueError if it holds no SoftmaxRegression.
        """
        contents = storage.load(path)
        with storage.reading(path):
            if "preprocessing" in contents.metadata:
                raise ValueError(
                    "holds an estimator behind preprocessing: use xent.regression.model_file.load"
                )
            return cls.from_contents(contents)

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        classes: Array | None = None,
        earlier_mass: Array | float = 0.0,
    ) -> tuple[ClassTargets, Objective, dict[str, Any]]:
        """(targets, objective, feature attributes for `_set_result`) from checked arguments.

        ``classes`` is None if ``y`` has all of them. An error leaves the estimator unchanged.
        """
        spec = check_parameters(self)
        if y is None:
            validate_data(self, X, y)  # raises scikit-learn's error for a missing target
        reset = classes is None or not hasattr(self, "coef_")
        X, attributes = features.check(self, X, order="C", reset=reset)
        targets = read_targets(X, y, sample_weight, classes)
        target = make_target(targets, self.class_weight, spec, earlier_mass)
        divisor, num_classes = float(target.total), len(targets.classes)
        objective = Objective(X, target, spec, divisor, float(self.alpha), self.fit_intercept, num_classes)
        return targets, objective, attributes

    def _all_classes(self, classes: Any, y: Any) -> Array | None:
        """The sorted classes for `partial_fit`; None at a first call with rows of probabilities."""
        if classes is not None:
            require_labels(classes, "classes")
        given = None if classes is None else np.unique(classes)
        if hasattr(self, "classes_"):
            if given is not None and not np.array_equal(given, self.classes_):
                raise ValueError(
                    f"`classes` are {listed(given)}, those of the last call were {listed(self.classes_)}"
                )
            return np.asarray(self.classes_)
        if given is None:
            if np.ndim(y) != 2:
                raise ValueError("`classes` must be given at the first `partial_fit`: all labels there are")
            return None
        if len(given) < 2:
            raise ValueError(f"`classes` must be at least 2; got {listed(given)}")
        return given

    def _start(self, objective: Objective, classes: Array, warm: bool) -> Array:
        """Zeros; if ``warm``, the last parameters for classes that the estimator has already."""
        coef = np.zeros((objective.num_scores, objective.num_features))
        intercept = np.zeros(objective.num_scores)
        if warm and hasattr(self, "coef_") and self.coef_.shape[1] == objective.num_features:
            old = {label: k for k, label in enumerate(self.classes_.tolist())}
            common = [(k, old[label]) for k, label in enumerate(classes.tolist()) if label in old]
            rows = np.concatenate([_class_rows(self.coef_), _class_rows(self.intercept_[:, None])], axis=1)
            new = np.zeros((len(classes), rows.shape[1]))
            new[[k for k, _ in common]] = rows[[k for _, k in common]]
            new = new if objective.num_scores > 1 else new[1:] - new[:1]
            coef, intercept = new[:, :-1], new[:, -1]
        return objective.pack(coef, intercept)

    def _set_result(self, objective: Objective, parameters: Array, attributes: dict[str, Any]) -> None:
        dtype = objective.features.dtype
        coef, intercept = objective.unpack(parameters)
        if len(intercept) > 1:  # a constant added to all rows changes no probability: take mean 0
            coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
        coef, intercept = features.as_weights(coef, dtype), features.as_weights(intercept, dtype)
        self.coef_, self.intercept_, self.temperature_ = coef, intercept, 1.0
        features.set_attributes(self, attributes)

    def _scores(self, X: Any) -> Array:
        check_is_fitted(self)
        return features.scores(features.check(self, X, reset=False)[0], self.coef_, self.intercept_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def versions() -> dict[str, str]:
    """Versions of xent and of the libraries that its numbers depend on."""
    return {name: version(name) for name in ("xent", "numpy", "scipy", "scikit-learn")}


def _class_rows(coef: Array) -> Array:
    """One row for each class; a single row w becomes (−w/2, w/2), the two rows of least norm."""
    return coef if len(coef) > 1 else np.concatenate([-coef / 2, coef / 2])


def _progress(step: Step) -> str:
    gap = (
        "" if step.optimality_gap is None else f", at most {step.optimality_gap:.1e} of it above the minimum"
    )
    return f"step {step.iteration}: objective {step.objective:.6f}{gap}"
