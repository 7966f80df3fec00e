"""SoftmaxRegression: a scikit-learn classifier trained by the closed-form gradient (P − Y)ᵀX/N."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from xent.api import cross_entropy_with_grad, log_softmax
from xent.spec import LossSpec

try:
    import scipy.optimize
    import threadpoolctl
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ModuleNotFoundError as error:
    message = f"SoftmaxRegression needs {error.name}: pip install 'xent[fit]'"
    raise ModuleNotFoundError(message, name=error.name) from error

Array = np.ndarray[Any, Any]

BLOCK = 1 << 19  # elements of X a block: 2 MiB of float32, a level-2 cache


class Step(NamedTuple):
    """One step of the training, as a ``callback`` receives it."""

    iteration: int
    objective: float  # mean loss + penalty, nats
    coef: Array  # as `coef_`, float64
    intercept: Array


class SoftmaxRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multinomial logistic regression: the mean cross-entropy (4) plus ``alpha/2·‖W‖²``, by L-BFGS.

    scikit-learn's ``C`` is ``1/(alpha·N)``; the intercept is not penalised. With two classes there
    is one score, the logit of ``classes_[1]`` against 0, as in scikit-learn. Bring the features to
    one scale first: the penalty and the speed depend on it. Float32 features stay float32.

    Parameters
    ----------
    alpha : float >= 0, default 1e-3
        Strength of the L2 penalty.
    fit_intercept : bool, default True
    max_iter : int >= 0, default 1000
        Steps of L-BFGS; ConvergenceWarning if they do not suffice.
    tol : float >= 0, default 1e-5
        Training ends when no partial derivative of the objective exceeds this.
    class_weight : dict {label: weight}, "balanced" or None, default None
        Factor of each class, 1 where not given; "balanced" is ``Σω / (K·Σω_k)``.
    label_smoothing, smoothing_over, focal_gamma
        As for `xent.cross_entropy`.
    warm_start : bool, default False
        Start from the last fit where classes and features agree, not from 0.
    verbose : bool, default False
        Print the objective at each step.
    callback : callable, default None
        Called with a `Step` at each step.

    Attributes
    ----------
    classes_ : (K,) array of the labels, sorted
    coef_ : (K, D) array of the dtype of X, (1, D) for two classes
    intercept_ : (K,) array, (1,) for two classes; zeros without an intercept
    n_iter_ : int
    loss_curve_ : list of float
        The objective at the start and after each step, nats.
    n_features_in_ : int, and feature_names_in_ : (D,) array if X has names for its columns

    Raises
    ------
    TypeError, ValueError
        For a parameter, or for data, out of place, naming the expectation and the value.

    Examples
    --------
    >>> import numpy as np, xent
    >>> X, y = np.array([[0.0], [1.0], [3.0], [4.0]]), ["no", "no", "yes", "yes"]
    >>> xent.SoftmaxRegression().fit(X, y).predict([[0.5], [3.5]])
    array(['no', 'yes'], dtype='<U3')
    """

    def __init__(
        self,
        *,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-5,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        smoothing_over: Literal["all", "others"] = "all",
        focal_gamma: float = 0.0,
        warm_start: bool = False,
        verbose: bool = False,
        callback: Callable[[Step], None] | None = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.smoothing_over = smoothing_over
        self.focal_gamma = focal_gamma
        self.warm_start = warm_start
        self.verbose = verbose
        self.callback = callback

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on ``X (N, D)`` floats and ``y (N,)`` labels of any kind; ``sample_weight (N,)`` >= 0."""
        objective = self.objective(X, y, sample_weight)
        start = self._start(objective)
        curve = [objective(start)[0]]

        def on_step(parameters: Array, value: float) -> None:
            curve.append(value)
            step = Step(len(curve) - 1, value, *objective.unpack(parameters))
            if self.verbose:
                print(f"step {step.iteration}: objective {step.objective:.6f}")
            if self.callback is not None:
                self.callback(step)

        parameters, stopped = _minimise(objective, start, self.max_iter, self.tol, on_step)
        self.classes_ = objective.classes
        self.loss_curve_ = curve
        self.n_iter_ = len(curve) - 1
        self.coef_, self.intercept_ = (
            a.astype(objective.features.dtype) for a in objective.unpack(parameters)
        )
        if stopped:
            warnings.warn(f"SoftmaxRegression {stopped}", ConvergenceWarning, stacklevel=2)
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

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (N, K), in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Array:
        """Log-probabilities (N, K), from the scores: finite where the probability underflows."""
        return log_softmax(_logits(self._scores(X)))

    def _scores(self, X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def objective(self, X: Any, y: Any, sample_weight: Any = None) -> Objective:
        """The function that `fit` minimises on these data, with everything checked."""
        spec = self._check_parameters()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], order="C")
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"`y` must hold at least 2 classes; got one class, {classes[0]!r}")
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        class_weight = _class_weight(self.class_weight, classes, labels, weight)
        if not weight @ class_weight[labels] > 0:
            raise ValueError("`sample_weight` times `class_weight` must not be 0 in every row")
        return Objective(
            X, labels, classes, weight, class_weight, spec, float(self.alpha), self.fit_intercept
        )

    def _check_parameters(self) -> LossSpec:
        for name in ("alpha", "tol"):
            value = getattr(self, name)
            if isinstance(value, str | bool) or not 0 <= value < np.inf:
                raise ValueError(f"`{name}` must be a number, finite and >= 0; got {value!r}")
        if not hasattr(self.max_iter, "__index__") or self.max_iter < 0:
            raise ValueError(f"`max_iter` must be an integer >= 0; got {self.max_iter!r}")
        return LossSpec(
            label_smoothing=self.label_smoothing,
            smoothing_over=self.smoothing_over,
            focal_gamma=self.focal_gamma,
        )

    def _start(self, objective: Objective) -> Array:
        shape = (objective.num_scores, objective.features.shape[1])
        warm = self.warm_start and hasattr(self, "coef_") and self.coef_.shape == shape
        if warm and np.array_equal(self.classes_, objective.classes):
            return objective.pack(self.coef_, self.intercept_)
        return objective.pack(np.zeros(shape), np.zeros(objective.num_scores))


class Objective:
    """The penalised mean loss and its gradient, in float64, as functions of one flat vector.

    The vector is W (num_scores, D) and then, if fitted, the intercept. X is read in blocks of rows
    that stay in the cache between the two products. ``exact`` says whether blocks of a float32 X are
    widened before the products: rounded ones are twice as fast, and stall near the optimum.
    """

    def __init__(
        self,
        features: Array,
        labels: Array,
        classes: Array,
        weight: Array,
        class_weight: Array,
        spec: LossSpec,
        alpha: float,
        fit_intercept: bool,
    ) -> None:
        self.features = features
        self.labels = labels
        self.classes = classes
        self.num_scores = len(classes) if len(classes) > 2 else 1
        self.weight = weight
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.exact = True
        self.options: dict[str, Any] = {
            "class_weight": class_weight,
            "label_smoothing": spec.label_smoothing,
            "smoothing_over": spec.smoothing_over,
            "focal_gamma": spec.focal_gamma,
            "denominator": float(weight @ class_weight[labels]),
            "validate": False,
        }

    @property
    def num_parameters(self) -> int:
        """Length of the vector."""
        return int(self.num_scores * (self.features.shape[1] + self.fit_intercept))

    def __call__(self, parameters: Array) -> tuple[float, Array]:
        """Objective (nats) and its gradient."""
        coef, intercept = self.unpack(parameters)
        dtype = np.float64 if self.exact else self.features.dtype
        narrow = np.ascontiguousarray(coef.T, dtype)
        dcoef, dintercept = np.zeros_like(coef), np.zeros_like(intercept)
        penalty = 0.5 * self.alpha * float(np.vdot(coef, coef))
        loss = 0.0
        rows = max(1, BLOCK // max(1, self.features.shape[1]))
        for start in range(0, len(self.labels), rows):
            block = slice(start, start + rows)
            x = self.features[block].astype(dtype, copy=False)
            logits = _logits((x @ narrow).astype(np.float64, copy=False) + intercept)
            value, dlogits = cross_entropy_with_grad(
                logits, self.labels[block], out=logits, sample_weight=self.weight[block], **self.options
            )
            loss += float(value)
            dscores = dlogits[:, -self.num_scores :]
            dcoef += dscores.T.astype(dtype, copy=False) @ x
            dintercept += dscores.sum(0)
        return loss + penalty, self.pack(dcoef + self.alpha * coef, dintercept)

    def pack(self, coef: Array, intercept: Array) -> Array:
        """One float64 vector."""
        parts = [coef.ravel(), intercept] if self.fit_intercept else [coef.ravel()]
        return np.concatenate(parts).astype(np.float64, copy=False)

    def unpack(self, parameters: Array) -> tuple[Array, Array]:
        """(W, intercept), zeros where there is none."""
        split = self.num_scores * self.features.shape[1]
        coef = parameters[:split].reshape(self.num_scores, -1)
        return coef, parameters[split:] if self.fit_intercept else np.zeros(self.num_scores)


def _minimise(
    objective: Objective,
    start: Array,
    max_iter: int,
    tol: float,
    on_step: Callable[[Array, float], None],
) -> tuple[Array, str]:
    """(parameters, why the training stopped early, or "")."""
    parameters, steps = start, 0
    for exact in (True,) if objective.features.dtype == np.float64 else (False, True):
        objective.exact = exact
        if steps == max_iter:
            continue
        with _scipy_on_one_thread():
            result = scipy.optimize.minimize(
                objective,
                parameters,
                jac=True,
                method="L-BFGS-B",
                callback=lambda intermediate_result: on_step(
                    intermediate_result.x, float(intermediate_result.fun)
                ),
                # Only the gradient says that it is done; ftol stops at the last bits of float64.
                options={
                    "maxiter": max_iter - steps,
                    "maxfun": np.iinfo(np.int32).max,
                    "gtol": tol,
                    "ftol": 4 * np.finfo(np.float64).eps,
                    "maxls": 50,
                    "maxcor": 20,
                },
            )
        parameters, steps = result.x, steps + result.nit
    value, gradient = objective(parameters)
    if not np.isfinite(value):
        raise ValueError("the objective overflowed: bring the features to one scale (StandardScaler)")
    slope = float(np.abs(gradient).max())
    finding = f"with a partial derivative of {slope:.2g} where tol={tol:g} is asked for: "
    scale = "bring the features to one scale (StandardScaler), or raise "
    if slope > tol and steps == max_iter:
        return parameters, f"stopped at max_iter={max_iter} steps {finding}{scale}max_iter, alpha or tol"
    if slope > tol > 0:
        return parameters, f"stopped after {steps} steps, at the end of float64, {finding}{scale}tol"
    return parameters, ""


@contextmanager
def _scipy_on_one_thread() -> Iterator[None]:
    """SciPy's wheel brings a second BLAS pool, which would spin against the one of our products."""
    libraries = _scipy_blas()
    before = [library.get_num_threads() for library in libraries]
    try:
        for library in libraries:
            library.set_num_threads(1)
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set_num_threads(threads)


@cache  # finding the libraries costs milliseconds, setting their threads nothing
def _scipy_blas() -> list[Any]:
    controllers = threadpoolctl.ThreadpoolController().lib_controllers
    return [
        library
        for library in controllers
        if library.user_api == "blas"
        and any(part.startswith("scipy") for part in PurePath(library.filepath).parent.parts[-2:])
    ]


def _logits(scores: Array) -> Array:
    """(N, K) logits; one score is the logit of the second of two classes against 0."""
    return scores if scores.shape[1] > 1 else np.pad(scores, ((0, 0), (1, 0)))


def _class_weight(class_weight: Any, classes: Array, labels: Array, weight: Array) -> Array:
    """(K,) factors."""
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, str) and class_weight == "balanced":
        share = np.bincount(labels, weight, len(classes))
        balanced: Array = np.zeros(len(classes))
        np.divide(weight.sum() / len(classes), share, out=balanced, where=share > 0)
        return balanced
    if not isinstance(class_weight, dict):
        raise ValueError(f'`class_weight` must be a dict, "balanced" or None; got {class_weight!r}')
    known = classes.tolist()
    factors = np.ones(len(classes))
    for label, factor in class_weight.items():
        if label not in known:
            raise ValueError(f"`class_weight` names {label!r}, which is no label of `y`: {known}")
        if not 0 <= factor < np.inf:
            raise ValueError(f"`class_weight` must be finite and >= 0; got {factor!r} for {label!r}")
        factors[known.index(label)] = factor
    return factors
