"""SoftmaxRegressionCV: SoftmaxRegression with alpha chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from operator import attrgetter
from typing import Any, Literal, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from xent.files import storage
from xent.regression.dask_input import is_dask
from xent.regression.estimator import SoftmaxRegression
from xent.regression.file_rows.rows import Rows
from xent.regression.fitting import Step, fit_objective, set_parameters
from xent.regression.objective import Objective
from xent.regression.parameters import check_parameters
from xent.regression.penalty.alpha_choice import choose

Array = np.ndarray[Any, Any]


class SoftmaxRegressionCV(SoftmaxRegression):
    """`SoftmaxRegression` with the ``alpha`` of the least cross-entropy on held-out folds.

    For each alpha a model is trained without each fold, and the losses (1) of the fold's rows are averaged:
    section 15 of docs/maths.md. The model is then trained on all rows. All this takes a few times as long
    as the training with one alpha. Options such as ``label_smoothing`` and ``class_weight`` change the
    training and not the loss that is compared. The losses are those at approximate optima, whose error is
    small beside ``standard_errors_``; to compare models, take those of held-out rows.

    Parameters
    ----------
    alphas : int >= 1, or array of floats >= 0, default 10
        The alphas to try. A number is how many at most: a factor of √10 apart, from one in the middle down as
        long as the loss falls by more than 0.03 standard errors, and up to where it is one above the least.
    cv : int, cross-validation splitter or iterable of (training rows, held-out rows), default 5
        As for scikit-learn: a number is that of the folds, stratified by class.
    one_se : bool, default False
        Take the largest alpha whose loss is at most one standard error above the least.
    fit_intercept, solver, max_iter, tol, class_weight, label_smoothing, smoothing_over, focal_gamma
        As for `SoftmaxRegression`; solver, max_iter and tol are for the model of all rows.
    random_state : int, numpy RandomState or None, default None
        Draws the rows from which the Hessian is estimated; None is 0.
    verbose : bool or int >= 0, default False
        Print the held-out loss of each alpha, and the objective at each step of the final training.
    callback : callable, default None
        Called with a `Step` at each step of the final training.

    Attributes
    ----------
    alpha_ : float
    alphas_ : (A,) array
        The alphas that were tried, in descending order.
    scores_ : (A, F) array
        Mean cross-entropy of the rows of each fold, nats: less is better.
    mean_scores_, standard_errors_ : (A,) arrays
        The mean over all held-out rows (49), and its standard error (50).
    classes_, coef_, intercept_, temperature_, optimality_gap_, solver_, n_iter_, loss_curve_, n_features_in_
        As for `SoftmaxRegression`, of the model of all rows.

    Raises
    ------
    TypeError, ValueError
        For a parameter, or for data, out of place, naming the expectation and the value.

    Examples
    --------
    >>> import xent
    >>> from sklearn.datasets import load_iris
    >>> model = xent.SoftmaxRegressionCV().fit(*load_iris(return_X_y=True))
    >>> bool(model.alpha_ == model.alphas_[model.mean_scores_.argmin()])
    True
    >>> model.scores_.shape == (len(model.alphas_), 5)
    True
    """

    alpha_: float
    checkpoint = resume = None  # of `SoftmaxRegression`: a choice of alpha does not go on

    def __init__(
        self,
        *,
        alphas: Any = 10,
        cv: Any = 5,
        one_se: bool = False,
        fit_intercept: bool = True,
        solver: Literal["auto", "lbfgs", "newton-cg", "sgd"] = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        smoothing_over: Literal["all", "others"] = "all",
        focal_gamma: float = 0.0,
        random_state: Any = None,
        verbose: bool | int = False,
        callback: Callable[[Step], None] | None = None,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.one_se = one_se
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.smoothing_over = smoothing_over
        self.focal_gamma = focal_gamma
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback

    @property
    def alpha(self) -> float:  # type: ignore[override]
        """The alpha that was chosen, under the name that `SoftmaxRegression` has for it."""
        check_is_fitted(self, "alpha_")
        return self.alpha_

    @property
    def partial_fit(self) -> Any:
        """There is none: the folds must be of all rows."""
        raise AttributeError("SoftmaxRegressionCV has no `partial_fit`, as folds are of all rows")

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Choose alpha, then train on all rows from the optimum found on the way.

        Parameters
        ----------
        X, y, sample_weight : as for `SoftmaxRegression.fit`, in memory
        """
        if is_dask(X, y, sample_weight) or isinstance(X, Rows):
            raise TypeError(f"`X` must be in memory for SoftmaxRegressionCV; got {type(X).__name__}")
        alphas = _checked(self.alphas)
        if not isinstance(self.one_se, bool | np.bool):
            raise ValueError(f"`one_se` must be True or False; got {self.one_se!r}")
        model = self._single(alpha=1.0)
        spec = check_parameters(model)
        targets, objective, attributes = model._prepare(X, y, sample_weight)
        (rows,) = objective.partitions.map(attrgetter("features"))
        choice, path = choose(model, rows, targets, spec, alphas, self.cv, self._on_alpha)
        chosen = choice.sparest if self.one_se else choice.best
        model.alpha = float(choice.alphas[chosen])
        set_parameters(model, objective, path.optima[model.alpha][0], attributes)
        model.classes_, model.warm_start = targets.classes, True
        fit_objective(model, objective.with_alpha(model.alpha), targets.classes, attributes)
        self.alpha_ = model.alpha
        self.alphas_, self.scores_ = choice.alphas, choice.scores
        self.mean_scores_, self.standard_errors_ = choice.mean, choice.standard_error
        self.__dict__.pop("feature_names_in_", None)
        self.__dict__.update({name: value for name, value in vars(model).items() if name.endswith("_")})
        return self

    def objective(self, X: Any, y: Any, sample_weight: Any = None) -> Objective:
        """The function that `fit` minimised at last, with ``alpha_``."""
        return self.single().objective(X, y, sample_weight)

    def contents(self) -> storage.Contents:
        """The contents that `save` writes: those of a `SoftmaxRegression` with ``alpha_``."""
        check_is_fitted(self)
        return self.single().contents()

    @classmethod
    def from_contents(cls, contents: storage.Contents) -> Any:
        """The `SoftmaxRegression` that `save` wrote."""
        return SoftmaxRegression.from_contents(contents)

    def single(self) -> SoftmaxRegression:
        """The fitted `SoftmaxRegression` with ``alpha_``."""
        check_is_fitted(self)
        model = self._single(self.alpha_)
        fitted = (name for name in vars(self) if name.endswith("_") and not name.startswith("_"))
        own = ("alpha_", "alphas_", "scores_", "mean_scores_", "standard_errors_")
        model.__dict__.update({name: vars(self)[name] for name in fitted if name not in own})
        return model

    def _single(self, alpha: float) -> SoftmaxRegression:
        options = self.get_params(deep=False)
        for name in ("alphas", "cv", "one_se"):
            del options[name]
        return SoftmaxRegression(alpha=alpha, **options)

    def _on_alpha(self, alpha: float, loss: float) -> None:
        if self.verbose:
            print(f"alpha {alpha:.3g}: held-out loss {loss:.6f}")


def _checked(alphas: Any) -> int | Array:
    """``alphas`` as a number or an array; TypeError or ValueError for anything else."""
    if isinstance(alphas, Integral) and alphas is not True and int(alphas) >= 1:
        return int(alphas)
    try:
        each = np.unique(np.asarray(alphas, np.float64))
    except (TypeError, ValueError):
        each = np.array([np.nan])
    if np.ndim(alphas) != 1 or not len(each) or not np.isfinite(each).all() or each[0] < 0:
        raise ValueError(f"`alphas` must be an integer >= 1, or numbers, finite and >= 0; got {alphas!r}")
    return each
