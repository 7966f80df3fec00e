"""Every argument of every public function, given what it cannot be: an error, and the argument's name in it.

Functions and arguments are read from the signatures: new functions take part by themselves; a new argument
needs a line in ``GOOD``, or in ``BAD``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import xent
from xent import information

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402

N, K, D = 3, 4, 2
Z, X, W = np.zeros((N, K)), np.ones((N, D)), np.zeros((K, D))
Y, Q = np.array([0, 3, 1]), np.full((N, K), 0.5)
NAN, INF = float("nan"), float("inf")

# What an argument may be; by function where its name means several things.
GOOD: dict[str, Any] = {
    **dict.fromkeys(("logits", "input", "vector"), Z),
    **dict.fromkeys(("inputs", "teacher_inputs"), X),
    **dict.fromkeys(("linear_weight", "teacher_weight"), W),
    **dict.fromkeys(("bias", "teacher_bias", "linear_bias"), np.zeros(K)),
    **dict.fromkeys(("targets", "target", "labels"), Y),
    **dict.fromkeys(("weight", "class_weight"), np.ones(K)),
    "sample_weight": np.ones(N),
    "pos_weight": np.array(2.0),
    "indices": np.array([[3, 0], [1, 2], [0, 1]]),
    "log_probs": np.log([[0.5, 0.3], [0.9, 0.1], [0.2, 0.1]]),
    "model_or_linear": torch.nn.Linear(D, K),
    "p": Q[0],
    "q": Q[0],
    "loss": 1.0,
}
GOOD_OF: dict[str, dict[str, Any]] = {
    "linear_cross_entropy": {"input": X},
    "LinearCrossEntropyLoss": {"input": X},
    **{
        name: {"targets": Q, "target": Q, "sample_weight": np.ones((N, K)), "weight": np.ones((N, K))}
        for name in (
            "binary_cross_entropy",
            "binary_cross_entropy_with_grad",
            "binary_cross_entropy_with_logits",
            "BCEWithLogitsLoss",
        )
    },
}
MATRIX = {
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_row_statistics",
    "linear_kl_divergence",
    "linear_topk_kl_divergence",
}

# What it cannot be. Of arrays: numbers and shapes; types and places are added below.
NUMBER = ["text", b"1", 1j, [1.0, 2.0], NAN, INF, -1.0]
INTEGER = ["text", 1.5, True, 1j, [1, 2]]
WRONG_LABELS = [np.array([0, 9, 1]), np.array([0, -1, 1]), Y[:2], Y[:, None], Y + 0j, Y == 0]
WRONG_FACTORS = [[NAN], [INF], [1j]]
BAD: dict[str, list[Any]] = {
    "denominator": [*NUMBER, True, 10**400],
    "reduction": ["avg", None, 1, ["mean"]],
    "shift": ["text", 1.5, True, 1j, [1, 2.5], [], [-1, 2], -1],
    "shift_weight": [0.5, "text", [0.5], (1.0, 2.0)],
    "chunk_bytes": [*INTEGER, 0, -5],
    "logits_dtype": ["float32", 32, float],
    "ignore_index": [*INTEGER, 10**30],
    "label_smoothing": [*NUMBER, 1.5],
    "smoothing_over": ["some", None, 1],
    "focal_gamma": NUMBER,
    "alpha": [*NUMBER, 1.5],
    "poly1_epsilon": [x for x in NUMBER if x != -1.0] + [-1.5],
    "z_loss": NUMBER,
    "softcap": [*NUMBER, 0.0],
    "temperature": [*NUMBER, 0.0, None],
    "axis": [*INTEGER, 7, -7, None],
    "direction": ["up", None],
    "tail": ["drop", None],
    "want": ["lse", None, 3, (), ("text",), (None,), {"lse"}],
    "model_or_linear": ["text", None, 1.0, [1.0], torch.nn.Embedding(K, D), torch.ones(K, D)],
    "out": [[1.0], np.zeros(9), np.zeros((N, K), "f4"), "text"],
    "p": [[-0.5, 1.0], [NAN, 1.0], [1.5, 0.0], "text", Q[0] + 0j, Q[0] > 0],
    # Whatever is true or false, or nothing that can be wrong.
    **{name: [] for name in ("validate", "size_average", "reduce", "options", "loss")},
}
BAD["q"] = BAD["p"]
BAD_OF = {  # where None is the loss alone
    name: {"want": ["loss", ("loss", "losses"), 3, (), (None,), ("by_shift",), {"loss"}]}
    for name in ("linear_cross_entropy", "LinearCrossEntropyLoss")
}


def bad_arrays(function: str, name: str) -> list[Any]:
    """Dtypes, shapes and values that the array ``name`` cannot have."""
    good = good_value(function, name)
    if name == "pos_weight":
        numbers = [np.array(x) for x in (1j, NAN, INF)]
        return numbers if function.startswith(("torch", "constructor")) else [*numbers, np.array(-1.0)]
    if name == "indices":
        return [good + 0j, good > 0, good + 0.5, good + 1, 0 * good, good[:2], good[..., :0], np.zeros(())]
    if name == "log_probs":
        return [good + 0j, good > 0, good + 1, good * np.nan, good[..., :1], good[:2], np.zeros(())]
    if name in ("targets", "target", "labels"):
        return [np.full_like(Q, NAN), -Q, Q + 0j, Q[:2]] if good is Q else WRONG_LABELS
    if is_factor(function, name):
        wrong = [np.where(good == good, x[0], good) for x in WRONG_FACTORS]
        return (
            [*wrong, np.ones(np.array(good.shape) + 1), -good]
            if is_sign_checked(name)
            else [
                *wrong,
                np.ones(np.array(good.shape) + 1),
            ]
        )
    wrong = [good + 0j, good > 0]
    return wrong if name in FIRST else [*wrong, good[..., :-1], np.zeros(())]


# Those of `xent` that take tensors too.
TENSORS = {
    "cross_entropy",
    "binary_cross_entropy",
    "row_statistics",
    "linear_cross_entropy",
    "linear_row_statistics",
}
FIRST = {"logits", "input", "inputs"}  # whose shape is that which others must have


def is_factor(function: str, name: str) -> bool:
    return name in ("sample_weight", "class_weight") or (
        name == "weight" and function not in MATRIX_OF_WEIGHT
    )


MATRIX_OF_WEIGHT: set[str] = set()  # functions whose ``weight`` is that of a layer, by their face


def is_sign_checked(name: str) -> bool:
    return name == "class_weight"


def good_value(function: str, name: str) -> Any:
    if name == "weight" and function in MATRIX_OF_WEIGHT:
        return W
    return GOOD_OF.get(function.rpartition(" ")[2], {}).get(name, GOOD.get(name))


def module(make: Callable[..., Any], call: tuple[str, ...]) -> Callable[..., Any]:
    """A function of all that a module takes, when it is made and when it is called."""

    def function(**given: Any) -> Any:
        called = {name: given.pop(name) for name in call if name in given}
        return make(**given)(**called)

    return function


def faces() -> Iterator[tuple[str, Callable[..., Any], dict[str, inspect.Parameter]]]:
    """(its name, the function, its arguments) of all that is public."""
    for name in xent.__all__:
        function = getattr(xent, name)
        if inspect.isfunction(function) and name != "rows_from":  # file_rows/test_rows.py has it
            arguments = dict(inspect.signature(function).parameters)
            yield f"arrays {name}", function, arguments
            if name in TENSORS:
                yield f"tensors {name}", function, arguments
    for name, function in inspect.getmembers(information, inspect.isfunction):
        if function.__module__ == information.__name__ and not name.startswith("_"):
            yield f"information {name}", function, dict(inspect.signature(function).parameters)
    for name in xt.__all__:
        function = getattr(xt, name)
        if inspect.isfunction(function):
            yield f"torch {name}", function, dict(inspect.signature(function).parameters)
        elif issubclass(function, torch.nn.Module):
            arguments = dict(inspect.signature(function.function).parameters)
            call = dict(inspect.signature(function.forward).parameters)
            call.pop("self")
            given = arguments | call
            if name == "BCEWithLogitsLoss":
                given["sample_weight"] = call["sample_weight"]
            if name == "LinearCrossEntropyLoss":
                del given["linear_weight"], given["linear_bias"], given["options"]
                function = layer
            run = module(function, tuple(call))
            yield f"torch {name}", run, given
            for late in ("sample_weight", "denominator"):  # at the constructor, where it has them
                if late in arguments:
                    early = tuple(x for x in call if x != late)
                    yield (
                        f"constructor {name}",
                        module(function, early),
                        {x: p for x, p in given.items() if x == late or p.default is p.empty},
                    )


def layer(**options: Any) -> Any:
    return xt.LinearCrossEntropyLoss(D, K, dtype=torch.float64, **options)


FACES = list(faces())
MATRIX_OF_WEIGHT |= {
    face
    for face, _, _ in FACES
    if face.rpartition(" ")[2] in MATRIX
    and face.rpartition(" ")[2] != face
    and not (face.startswith("torch") and face.endswith(" linear_cross_entropy"))
}


def of_face(face: str, x: Any) -> Any:
    """Arrays as the face takes them."""
    if isinstance(x, np.ndarray) and face.split()[0] in ("tensors", "torch", "constructor"):
        return torch.tensor(x)
    return x


def wrong(face: str, name: str) -> Iterator[Any]:
    bad = BAD | BAD_OF.get(face.rpartition(" ")[2], {})
    if name in bad:
        yield from bad[name]
    else:
        yield from bad_arrays(face, name)
    good = good_value(face, name)
    if not isinstance(good, np.ndarray) or name in ("p", "q"):
        return
    if name in FIRST and face.split()[1] in TENSORS:
        return  # what they are says which of the two faces is meant
    if face.startswith(("arrays", "information")):
        yield torch.tensor(good)
        if good.ndim:
            yield np.ma.masked_array(good)
        yield np.array("text")
        return
    yield "text"
    if good.ndim:
        yield good.tolist()
    yield torch.tensor(good).to_sparse()


def required(face: str, arguments: dict[str, inspect.Parameter]) -> dict[str, Any]:
    """The least that a call needs, and what other arguments need to be there."""
    names = [name for name, p in arguments.items() if p.default is p.empty or name in ("labels", "targets")]
    return {name: of_face(face, good_value(face, name)) for name in names}


def no_error(result: Any, name: str, given: Any) -> None:
    pytest.fail(f"no error for {name}={given!r}: {result}")


CASES = [
    pytest.param(face, function, arguments, name, id=f"{face} {name}")
    for face, function, arguments in FACES
    for name in arguments
]


@pytest.mark.parametrize(("face", "function", "arguments"), FACES, ids=[face for face, *_ in FACES])
def test_the_call_without_a_mistake(face: str, function: Any, arguments: Any) -> None:
    every = {
        name: of_face(face, good_value(face, name))
        for name in arguments
        if good_value(face, name) is not None
    }
    function(**required(face, arguments))
    function(**every)


@pytest.mark.parametrize(("face", "function", "arguments", "name"), CASES)
def test_a_mistake_is_named(face: str, function: Any, arguments: Any, name: str) -> None:
    for value in wrong(face, name):
        given = of_face(face, value)
        call = required(face, arguments) | {name: given}
        with pytest.raises((TypeError, ValueError)) as raised:
            no_error(function(**call), name, given)
        assert re.search(rf"\b{name}\b", str(raised.value)), f"{given!r}: {raised.value}"
        assert not isinstance(raised.value, NotImplementedError)


@pytest.mark.parametrize(("face", "function", "arguments", "name"), CASES)
def test_another_device_is_named(face: str, function: Any, arguments: Any, name: str) -> None:
    call = required(face, arguments)
    good = of_face(face, good_value(face, name))
    if not isinstance(good, torch.Tensor) or len(call.keys() | {name}) < 2:
        pytest.skip("no tensor, or no other one")
    for where in [x for x in call if isinstance(call[x], torch.Tensor)] + [name]:
        with pytest.raises(ValueError, match=rf"(?s)\b{where}\b.*meta|meta.*\b{where}\b"):
            function(**call | {name: good} | {where: (call | {name: good})[where].to("meta")})
