"""SoftmaxRegression: a scikit-learn classifier trained by the closed-form gradient (P − Y)ᵀX/N."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from xent.api.cross_entropy import log_softmax

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted, validate_data

    from xent.files import storage
    from xent.regression import features
    from xent.regression.calibration import fit_temperature
    from xent.regression.class_targets import (
        ClassTargets,
        as_target,
        class_factors,
        listed,
        read_targets,
        require_labels,
    )
    from xent.regression.dask_input import is_dask, lazy_on_dask
    from xent.regression.file_rows.rows import Rows, fit_rows, require_memory
    from xent.regression.fitting import Step, fit_objective, objective_of, set_parameters, start
    from xent.regression.objective import Objective
    from xent.regression.parameters import check_parameters
    from xent.regression.saved import checkpoints, serialization
    from xent.regression.solvers.sgd import Stream, one_pass
    from xent.regression.sums.partition_sums import as_logits
    from xent.regression.sums.partitions import Local, Partition
except ModuleNotFoundError as error:
    message = f"SoftmaxRegression needs {error.name}: pip install 'xent[fit]'"
    raise ModuleNotFoundError(message, name=error.name) from error

Array = np.ndarray[Any, Any]


class SoftmaxRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multinomial logistic regression: the mean cross-entropy (4) plus ``alpha/2·‖W‖²``.

    scikit-learn's ``C`` is ``1/(alpha·D)``, D being the sum of ``sample_weight`` times class weight, which
    without either is N; the intercept is not penalised. With two classes there is one score, the logit of
    ``classes_[1]`` against 0, as in scikit-learn; with more the rows of W have mean 0, and so have the
    intercepts. Bring the features to one scale first, as the penalty is one for all. Float32 features stay
    float32, CSR matrices sparse. `fit`, `score` and the predictions take dask collections too.

    Parameters
    ----------
    alpha : float >= 0, default 1e-3
        Strength of the L2 penalty.
    fit_intercept : bool, default True
    solver : {"auto", "lbfgs", "newton-cg", "sgd"}, default "auto"
        "auto" chooses by the shape of X, and for rows of files or of dask the one with fewer passes; all end
        at the same optimum. `partial_fit` is always "sgd".
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
    checkpoint : path, default None
        File that `fit` writes, atomically: the model so far, which `load` reads, and what ``resume`` needs.
        It is written at the end of the first step, of a step when the last file is ``checkpoint_interval``
        old, and when the fit ends, also by an error or an interrupt.
    checkpoint_interval : float >= 0, default 600
        Seconds. 0 writes at each step.
    resume : path, default None
        Checkpoint from which `fit` goes on, with the bits that it would have had without a stop. The data and
        the other parameters must be as they were, but that ``max_iter`` may be another. May be the file
        ``checkpoint``.

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
    n_features_in_ : int
    feature_names_in_ : (D,) array, if X has names for its columns

    Raises
    ------
    TypeError, ValueError
        For a parameter, or for data, out of place, naming the expectation and the value; for a checkpoint
        that is none, or is of another fit, naming what differs.
    OSError
        For a checkpoint that cannot be read or written.

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

    classes_: Array
    loss_curve_: list[float]
    n_iter_: int

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
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_interval: float = 600.0,
        resume: str | PathLike[str] | None = None,
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
        self.checkpoint = checkpoint
        self.checkpoint_interval = checkpoint_interval
        self.resume = resume

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train from 0 (see ``warm_start``).

        Parameters
        ----------
        X : (N, D) array or CSR matrix of floats
            Float32 or float64 are kept. Or `xent.rows_from` of files, with their labels: then ``y`` and
            ``sample_weight`` must be None.
        y : (N,) labels of any kind, or (N, K) floats
            Floats are rows of probabilities of the classes 0 to K−1.
        sample_weight : (N,) array >= 0, default None
            None is 1 for each row.

        Notes
        -----
        All may be dask arrays or dataframes, or lists of delayed blocks of rows, of the same partitions. The
        rows then stay with dask's workers, and the result has the same bits for any scheduler and any number
        of workers. PartitionError names a partition that cannot be read; ConnectionError says that the
        scheduler was lost.
        """
        check_parameters(self)
        checkpoints.check(self)
        if is_dask(X, y, sample_weight):
            from xent.regression.dask_rows.first_pass import fit

            fit(self, X, y, sample_weight)
            return self
        if isinstance(X, Rows):
            fit_rows(self, X, y, sample_weight)
            return self
        targets, objective, attributes = self._prepare(X, y, sample_weight)
        fit_objective(self, objective, targets.classes, attributes)
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
        require_memory(X=X, y=y, sample_weight=sample_weight)
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
        stream, earlier_mass = getattr(self, "_stream", (None, 0.0))
        all_classes = self._all_classes(classes, y)
        targets, objective, attributes = self._prepare(X, y, sample_weight, all_classes, earlier_mass)
        curve, passes = ([], 0) if stream is None else (self.loss_curve_, self.n_iter_)
        point = start(self, objective, targets.classes, warm=True)
        value = objective(point)[0]
        stream = one_pass(objective, stream or Stream.begin(point), self.random_state)
        set_parameters(self, objective, stream.average, attributes)
        self._stream = (stream, earlier_mass + targets.mass)
        self.classes_ = targets.classes
        self.loss_curve_, self.n_iter_ = [*curve, value], passes + 1
        self.optimality_gap_, self.solver_ = None, "sgd"
        return self

    @lazy_on_dask
    def decision_function(self, X: Any) -> Array:
        """Scores (N, K): logits; with two classes (N,), the logit of ``classes_[1]``."""
        scores = self._scores(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    @lazy_on_dask
    def predict(self, X: Any) -> Array:
        """The label of the highest score, (N,)."""
        scores = self._scores(X)
        best = (scores[:, 0] > 0).astype(int) if len(self.classes_) == 2 else scores.argmax(1)
        return np.asarray(self.classes_[best])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Mean accuracy; for ``y`` of probabilities (N, K), the mean of those of the predicted classes.

        Of dask collections it is a dask array without axes.
        """
        if is_dask(X, y, sample_weight):
            from xent.regression.dask_rows.predictions import score

            return score(self, X, y, sample_weight)
        require_memory(X=X, y=y, sample_weight=sample_weight)
        if np.ndim(y) != 2 or np.shape(y)[1] == 1:
            require_labels(y)
            return float(super().score(X, y, sample_weight))
        scores = self._scores(X)
        targets = read_targets(scores, y, sample_weight, self.classes_)
        best = as_logits(scores).argmax(1)
        return float(np.average(targets.targets[np.arange(len(best)), best], weights=targets.weight))

    @lazy_on_dask
    def predict_proba(self, X: Any) -> Array:
        """Probabilities (N, K), in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    @lazy_on_dask
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
        """Write the fitted estimator to one safetensors file, atomically.

        Not the parameters ``callback``, ``checkpoint``, ``checkpoint_interval`` and ``resume``.
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
                    "holds an estimator behind preprocessing: use xent.regression.saved.model_file.load"
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
        """(targets, objective, feature attributes for `set_parameters`) from checked arguments.

        ``classes`` is None if ``y`` has all of them. An error leaves the estimator unchanged.
        """
        spec = check_parameters(self)
        require_memory(X=X, y=y, sample_weight=sample_weight)
        if y is None:
            validate_data(self, X, y)  # raises scikit-learn's error for a missing target
        reset = classes is None or not hasattr(self, "coef_")
        X, attributes = features.check(self, X, order="C", reset=reset)
        targets = read_targets(X, y, sample_weight, classes)
        factors = class_factors(self.class_weight, targets.classes, targets.mass + earlier_mass)
        partitions = Local([Partition(X, as_target(targets, factors, spec))])
        objective = objective_of(self, partitions, len(targets.classes), spec)
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

    def _scores(self, X: Any) -> Array:
        check_is_fitted(self)
        require_memory(X=X)
        return features.scores(features.check(self, X, reset=False)[0], self.coef_, self.intercept_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def versions() -> dict[str, str]:
    """Versions of xent and of the libraries that its numbers depend on."""
    return {name: version(name) for name in ("xent", "numpy", "scipy", "scikit-learn")}
