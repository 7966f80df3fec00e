"""Every error of the front door: its type, and in its words the name, expectation, value and place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import xent
from xent import information
from xent.kernels import registry

Z = np.zeros((3, 4))
Y = np.array([0, 3, 1])
Q = np.full((3, 4), 0.25)
X, W = np.zeros((3, 2)), np.zeros((4, 2))


def at(array: Any, where: Any, value: Any) -> Any:
    """A copy with one element changed."""
    changed = np.array(array)
    changed[where] = value
    return changed


def read_only(array: Any) -> Any:
    changed = np.array(array)
    changed.flags.writeable = False
    return changed


LOSSES: list[Callable[..., Any]] = [
    xent.cross_entropy,
    xent.cross_entropy_with_grad,
    lambda z, t, **o: xent.cross_entropy_hvp(z, t, Z, **o),
    lambda z, t, **o: xent.CrossEntropyLoss(**o)(z, t),
]
LOSS_IDS = ["cross_entropy", "with_grad", "hvp", "object"]

# (logits, targets, options, exception, what its message must contain)
ARGUMENTS: list[tuple[Any, Any, dict[str, Any], type[Exception], tuple[str, ...]]] = [
    # labels
    (Z, at(Y, 2, 4), {}, ValueError, ("`targets`", "[0, 4)", "ignore_index=-100", "got 4", "row 2")),
    (Z, at(Y, 1, -1), {}, ValueError, ("`targets`", "[0, 4)", "got -1", "row 1")),
    (Z, at(Y, 0, -100), {"ignore_index": 7}, ValueError, ("ignore_index=7", "got -100", "row 0")),
    (Z, at(Y.astype("u8"), 0, 2**64 - 1), {}, ValueError, ("got 18446744073709551615", "row 0")),
    (np.zeros((2, 3, 4)), at(np.zeros((2, 3), int), (1, 2), 9), {}, ValueError, ("got 9", "row 1, column 2")),
    (np.zeros((2, 3, 2, 4)), at(np.zeros((2, 3, 2), int), (1, 0, 1), 9), {},
     ValueError, ("index (1, 0, 1)",)),
    (np.zeros((3, 0)), Y, {}, ValueError, ("`targets`", "[0, 0)", "got 0", "row 0")),
    (Z, Y[:2], {}, ValueError, ("`targets`", "labels", "(3,)", "got (2,)")),
    (Z, np.zeros((3, 4), int), {}, ValueError, ("`targets`", "(3,)", "got (3, 4)", "one-hot")),
    # probabilities
    (Z, at(Q, (2, 1), -0.5), {}, ValueError, ("`targets`", "not negative", "got -0.5", "row 2, column 1")),
    (Z, at(Q, (0, 3), np.nan), {}, ValueError, ("`targets`", "not NaN", "got nan", "row 0, column 3")),
    (Z, Q[:, :3], {}, ValueError, ("`targets`", "probabilities", "(3, 4)", "got (3, 3)")),
    (Z, Y.astype(float), {}, ValueError, ("`targets`", "probabilities", "got (3,)", "integer dtype")),
    # dtypes and types
    (Z, Y.astype(bool), {}, TypeError, ("`targets`", "integer", "floating", "got bool")),
    (Z, Y.astype(complex), {}, TypeError, ("`targets`", "got complex128")),
    (Z, np.array(["a", "b", "c"]), {}, TypeError, ("`targets`", "got <U1")),
    (Z, None, {}, TypeError, ("`targets`", "got object")),
    (Z.astype(complex), Y, {}, TypeError, ("`logits`", "float64", "got complex128")),
    (Z.astype(bool), Y, {}, TypeError, ("`logits`", "got bool")),
    (Z.astype(np.longdouble), Y, {}, TypeError, ("`logits`", f"got {np.dtype(np.longdouble)}")),
    (Z.astype(object), Y, {}, TypeError, ("`logits`", "got object")),
    (np.array("text"), Y, {}, TypeError, ("`logits`", "got <U4")),
    (1.5, 0, {}, ValueError, ("`logits`", "at least one axis", "scalar")),
    ([[1.0, 2.0], [3.0]], Y, {}, ValueError, ("`logits`", "rectangular")),
    (np.ma.masked_array(Z, Z > 1), Y, {}, TypeError, ("`logits`", "MaskedArray", "ignore_index")),
    (Z, np.ma.masked_array(Y, Y > 1), {}, TypeError, ("`targets`", "MaskedArray", "sample_weight")),
    # weights
    (Z, Y, {"class_weight": np.ones(3)}, ValueError, ("`class_weight`", "(4,)", "got (3,)")),
    (Z, Y, {"class_weight": [1, 1, -2, 1]}, ValueError, ("`class_weight`", ">= 0", "got -2.0", "class 2")),
    (Z, Y, {"class_weight": [1, 1, np.nan, 1]},
     ValueError, ("`class_weight`", "finite", "got nan", "class 2")),
    (Z, Y, {"class_weight": [1, 1, 1, np.inf]},
     ValueError, ("`class_weight`", "finite", "got inf", "class 3")),
    (Z, Y, {"class_weight": ["a"] * 4}, TypeError, ("`class_weight`", "numbers", "got <U1")),
    (Z, Y, {"class_weight": np.ma.ones(4)}, TypeError, ("`class_weight`", "MaskedArray")),
    (Z, Y, {"sample_weight": np.ones(4)}, ValueError, ("`sample_weight`", "(3,)", "got (4,)")),
    (Z, Y, {"sample_weight": [1, np.inf, 1]}, ValueError, ("`sample_weight`", "finite", "got inf", "row 1")),
    (Z, Y, {"sample_weight": np.ones(3, complex)}, TypeError, ("`sample_weight`", "got complex128")),
    # scalar options
    (Z, Y, {"label_smoothing": 1.5}, ValueError, ("`label_smoothing`", "[0, 1]", "got 1.5")),
    (Z, Y, {"label_smoothing": -0.1}, ValueError, ("`label_smoothing`", "[0, 1]", "got -0.1")),
    (Z, Y, {"label_smoothing": np.nan}, ValueError, ("`label_smoothing`", "got nan")),
    (Z, Y, {"label_smoothing": "much"}, TypeError, ("`label_smoothing`", "number", "got 'much'")),
    (Z, Y, {"label_smoothing": [0.1, 0.2]}, TypeError, ("`label_smoothing`", "number", "got [0.1, 0.2]")),
    (Z, Y, {"label_smoothing": "0.1"}, TypeError, ("`label_smoothing`", "number", "got '0.1'")),
    (Z, Y, {"label_smoothing": b"0.1"}, TypeError, ("`label_smoothing`", "number", "got b'0.1'")),
    (Z, Y, {"temperature": "2"}, TypeError, ("`temperature`", "number", "got '2'")),
    (Z, Y, {"softcap": "30"}, TypeError, ("`softcap`", "number", "got '30'")),
    (Z, Y, {"focal_gamma": "2"}, TypeError, ("`focal_gamma`", "number", "got '2'")),
    (Z, Y, {"z_loss": "0.1"}, TypeError, ("`z_loss`", "number", "got '0.1'")),
    (Z, Y, {"smoothing_over": "most"}, ValueError, ("`smoothing_over`", '"all", "others"', "got 'most'")),
    (Z, Y, {"focal_gamma": -1.0}, ValueError, ("`focal_gamma`", ">= 0", "got -1.0")),
    (Z, Y, {"focal_gamma": np.inf}, ValueError, ("`focal_gamma`", "finite", "got inf")),
    (Z, Y, {"z_loss": -1e-4}, ValueError, ("`z_loss`", ">= 0", "got -0.0001")),
    (Z, Y, {"z_loss": None}, TypeError, ("`z_loss`", "number", "got None")),
    (Z, Y, {"softcap": 0.0}, ValueError, ("`softcap`", "> 0", "got 0.0")),
    (Z, Y, {"softcap": -30}, ValueError, ("`softcap`", "> 0", "got -30")),
    (Z, Y, {"temperature": 0.0}, ValueError, ("`temperature`", "> 0", "got 0.0")),
    (Z, Y, {"temperature": np.inf}, ValueError, ("`temperature`", "finite", "got inf")),
    (Z, Y, {"temperature": 1e31}, ValueError, ("`temperature`", "1e-30 to 1e30", "got 1e+31")),
    (Z, Y, {"softcap": 1e-31}, ValueError, ("`softcap`", "1e-30 to 1e30", "got 1e-31")),
    (Z, Y, {"z_loss": 10**400}, ValueError, ("`z_loss`", "finite", "got 1000")),
    (Z, Y, {"label_smoothing": np.array("0.1")}, TypeError, ("`label_smoothing`", "number", "array('0.1'")),
    (Z, Y, {"ignore_index": 1.0}, TypeError, ("`ignore_index`", "integer", "got 1.0")),
    (Z, Y, {"ignore_index": None}, TypeError, ("`ignore_index`", "integer", "got None")),
    (Z, Y, {"ignore_index": True}, TypeError, ("`ignore_index`", "integer", "got True")),
    (Z, Y, {"gamma": 2.0}, TypeError, ("`gamma`", "focal_gamma", "class_weight", "temperature")),
    # combinations without a meaning name both
    (Z, Y, {"focal_gamma": 2.0, "label_smoothing": 0.1}, ValueError,
     ("`focal_gamma`", "`label_smoothing`", "focal_gamma=2.0", "label_smoothing=0.1")),
    (Z, Y, {"focal_gamma": 2.0, "poly1_epsilon": 1.0}, ValueError,
     ("`focal_gamma`", "`poly1_epsilon`", "focal_gamma=2.0", "poly1_epsilon=1.0")),
    (Z, Y, {"poly1_epsilon": -2}, ValueError, ("`poly1_epsilon`", ">= -1", "got -2")),
    (Z, Q, {"poly1_epsilon": 2.0}, ValueError,
     ("`poly1_epsilon`", "`targets`", "poly1_epsilon=2.0", "floating")),
    (Z, Q, {"focal_gamma": 2.0}, ValueError, ("`focal_gamma`", "`targets`", "focal_gamma=2.0", "floating")),
    (Z, Y, {"reduction": "sum", "denominator": 3}, ValueError,
     ("`denominator`", "`reduction`", "denominator=3", "reduction='sum'")),
    # reduction and denominator
    (Z, Y, {"reduction": "average"}, ValueError, ("`reduction`", '"mean", "sum", "none"', "got 'average'")),
    (Z, Y, {"reduction": None}, ValueError, ("`reduction`", "got None")),
    (Z, Y, {"denominator": "tokens"}, ValueError, ("`denominator`", '"rows"', "got 'tokens'")),
    (Z, Y, {"denominator": -1.0}, ValueError, ("`denominator`", ">= 0", "got -1.0")),
    (Z, Y, {"denominator": np.nan}, ValueError, ("`denominator`", "finite", "got nan")),
    (Z, Y, {"denominator": [1, 2]}, TypeError, ("`denominator`", "number", "got [1, 2]")),
]  # fmt: skip


def raises(exception: type[Exception], words: tuple[str, ...]) -> Any:
    """The exception with all the words, in their order or not."""
    return pytest.raises(exception, match="".join(f"(?=.*{re.escape(word)})" for word in words))


@pytest.mark.parametrize("loss", LOSSES, ids=LOSS_IDS)
@pytest.mark.parametrize("row", ARGUMENTS, ids=lambda row: "_".join(row[-1]))
def test_loss(loss: Callable[..., Any], row: tuple[Any, ...]) -> None:
    logits, targets, options, exception, words = row
    with raises(exception, words):
        loss(logits, targets, **options)


# Calls of the other functions: (call, exception, words).
CALLS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    # out
    "out list": (
        lambda: xent.cross_entropy_with_grad(Z, Y, out=[1]),
        TypeError, ("`out`", "NumPy", "`list`")),
    "out dtype": (
        lambda: xent.cross_entropy_with_grad(Z, Y, out=Z.astype("f4")),
        TypeError, ("`out`", "dtype", "float64", "got float32")),
    "out dtype of integers": (
        lambda: xent.cross_entropy_with_grad(Z.astype(int), Y, out=Z.astype(int)),
        TypeError, ("`out`", "float64", "got int64")),
    "out big-endian": (
        lambda: xent.cross_entropy_with_grad(Z, Y, out=Z.astype(">f8")), TypeError, ("`out`", "got >f8")),
    "out shape": (
        lambda: xent.cross_entropy_with_grad(Z, Y, out=np.empty((4, 3))),
        ValueError, ("`out`", "(3, 4)", "got (4, 3)")),
    "out read-only": (
        lambda: xent.cross_entropy_with_grad(Z, Y, out=read_only(Z)), ValueError, ("`out`", "writeable")),
    "out unaligned": (
        lambda: xent.cross_entropy_with_grad(
            Z, Y, out=np.ndarray((3, 4), buffer=bytearray(97), offset=1)),
        ValueError, ("`out`", "aligned")),
    "out logits read-only": (
        lambda: (z := read_only(Z), xent.cross_entropy_with_grad(z, Y, out=z)),
        ValueError, ("`out`", "writeable")),
    "out broadcast": (
        lambda: xent.cross_entropy_with_grad(
            Z, Y, out=np.lib.stride_tricks.as_strided(np.empty(4), (3, 4), (0, 8))),
        ValueError, ("`out`", "stride 0")),
    "out overlaps logits": (
        lambda: (b := np.zeros((4, 4)), xent.cross_entropy_with_grad(b[1:], Y, out=b[:-1])),
        ValueError, ("`out`", "overlap")),
    "out reverses logits": (
        lambda: (b := np.zeros((3, 4)), xent.cross_entropy_with_grad(b, Y, out=b[::-1])),
        ValueError, ("`out`", "overlap")),
    "out is targets": (
        lambda: (q := Q.copy(), xent.cross_entropy_with_grad(Z, q, out=q)), ValueError, ("`out`", "overlap")),
    "out is smoothed targets": (
        lambda: (q := Q.copy(), xent.cross_entropy_with_grad(Z, q, label_smoothing=0.1, out=q)),
        ValueError, ("`out`", "overlap")),
    "out is weighted targets": (
        lambda: (q := Q.copy(), xent.cross_entropy_with_grad(Z, q, class_weight=np.ones(4), out=q)),
        ValueError, ("`out`", "overlap")),
    "out of hvp is smoothed targets": (
        lambda: (q := Q.copy(), xent.cross_entropy_hvp(Z, q, Z.copy(), label_smoothing=0.1, out=q)),
        ValueError, ("`out`", "overlap")),
    "out of backward is targets": (
        lambda: (q := Q.copy(), f := xent.CrossEntropyLoss(label_smoothing=0.1), f(Z, q), f.backward(out=q)),
        ValueError, ("`out`", "overlap")),
    "out of backward overlaps targets": (
        lambda: (
            b := np.full((4, 4), 0.25), f := xent.CrossEntropyLoss(), f(Z, b[1:]), f.backward(out=b[:-1])),
        ValueError, ("`out`", "overlap")),
    "out of windows": (
        lambda: xent.cross_entropy_with_grad(Z, Y, out=sliding_window_view(np.zeros(6), 4, writeable=True)),
        ValueError, ("`out`", "overlapping windows")),
    "out of windows two apart": (
        lambda: xent.cross_entropy_with_grad(
            Z, Y, out=sliding_window_view(np.zeros(8), 4, writeable=True)[::2]),
        ValueError, ("`out`", "overlapping windows")),
    "out holds labels": (
        lambda: (b := np.zeros((3, 3)), xent.cross_entropy_with_grad(Z[:, :3], b.view(int)[0], out=b)),
        ValueError, ("`out`", "overlap")),
    "out is vector": (
        lambda: (r := Z.copy(), xent.cross_entropy_hvp(Z, Y, r, out=r)), ValueError, ("`out`", "overlap")),
    "out of backward": (
        lambda: (f := xent.CrossEntropyLoss(), f(Z, Y), f.backward(out=np.empty(3))),
        ValueError, ("`out`", "(3, 4)", "got (3,)")),
    "out of softmax": (lambda: xent.softmax(Z, out=np.empty(3)), ValueError, ("`out`", "(3, 4)", "got (3,)")),
    # cross_entropy_hvp
    "vector shape": (
        lambda: xent.cross_entropy_hvp(Z, Y, Z[:2]), ValueError, ("`vector`", "(3, 4)", "got (2, 4)")),
    "vector dtype": (
        lambda: xent.cross_entropy_hvp(Z, Y, Z.astype(bool)), TypeError, ("`vector`", "got bool")),
    # CrossEntropyLoss
    "option at construction": (
        lambda: xent.CrossEntropyLoss(temperature=-1), ValueError, ("`temperature`", "> 0", "got -1")),
    "unknown at construction": (
        lambda: xent.CrossEntropyLoss(weight=1),
        TypeError, ("`weight`", "class_weight")),
    "reduction at construction": (
        lambda: xent.CrossEntropyLoss(reduction="avg"), ValueError, ("`reduction`", "got 'avg'")),
    "denominator misspelt at construction": (
        lambda: xent.CrossEntropyLoss(denominator="row"),
        ValueError, ("`denominator`", '"rows"', "got 'row'")),
    "denominator at construction": (
        lambda: xent.CrossEntropyLoss(denominator=-1), ValueError, ("`denominator`", ">= 0", "got -1")),
    "backward first": (lambda: xent.CrossEntropyLoss().backward(), RuntimeError, ("`backward`", "call")),
    "backward after its logits": (
        lambda: (z := Z.copy(), f := xent.CrossEntropyLoss(), f(z, Y), f.backward(out=z), f.backward()),
        RuntimeError, ("`backward`", "call")),
    "dloss shape": (
        lambda: (f := xent.CrossEntropyLoss(reduction="none"), f(Z, Y), f.backward(np.ones(2))),
        ValueError, ("`dloss`", "(3,)", "got (2,)")),
    "dloss of a mean": (
        lambda: (f := xent.CrossEntropyLoss(), f(Z, Y), f.backward(np.ones(3))),
        ValueError, ("`dloss`", "()", "got (3,)")),
    "dloss None": (
        lambda: (f := xent.CrossEntropyLoss(), f(Z, Y), f.backward(None)),
        TypeError, ("`dloss`", "number", "got None")),
    "dloss text": (
        lambda: (f := xent.CrossEntropyLoss(), f(Z, Y), f.backward("a")),
        TypeError, ("`dloss`", "number", "got 'a'")),
    "dloss complex": (
        lambda: (f := xent.CrossEntropyLoss(reduction="none"), f(Z, Y), f.backward(np.ones(3, complex))),
        TypeError, ("`dloss`", "number")),
    # row_statistics, softmax
    "labels of statistics": (
        lambda: xent.row_statistics(Z[:2], [0, 5]),
        ValueError, ("`labels`", "[0, 4)", "got 5", "row 1")),
    "shape of labels of statistics": (
        lambda: xent.row_statistics(Z, [0, 1]), ValueError, ("`labels`", "(3,)", "got (2,)")),
    "labels dtype": (lambda: xent.row_statistics(Z, Q), TypeError, ("`labels`", "integer", "got float64")),
    "statistics of text": (lambda: xent.row_statistics("text"), TypeError, ("`logits`", "got <U4")),
    "softmax of text": (lambda: xent.softmax(np.array(["a"])), TypeError, ("`logits`", "got <U1")),
    "log_softmax of a scalar": (lambda: xent.log_softmax(1.0), ValueError, ("`logits`", "scalar")),
    "logsumexp of bool": (lambda: xent.logsumexp(np.array([True])), TypeError, ("`logits`", "got bool")),
    # binary
    "binary label": (
        lambda: xent.binary_cross_entropy(Z[0], [0, 1, 2, 0]),
        ValueError, ("`targets`", "[0, 2)", "got 2", "row 2")),
    "binary label that wraps around to ignore_index": (
        lambda: xent.binary_cross_entropy(Z[0], np.array([0, 1, 2**64 - 100, 0], np.uint64)),
        ValueError, ("`targets`", "[0, 2)", f"got {2**64 - 100}", "row 2")),
    "binary label uint8": (
        lambda: xent.binary_cross_entropy_with_grad(Z[0], np.array([0, 1, 0, 255], np.uint8)),
        ValueError, ("`targets`", "[0, 2)", "got 255", "row 3")),
    "binary probability": (
        lambda: xent.binary_cross_entropy(Z[0], [0, 1.5, 0, 0]),
        ValueError, ("`targets`", "[0, 1]", "got 1.5", "row 1")),
    "binary NaN": (
        lambda: xent.binary_cross_entropy(Z, at(Q, (1, 2), np.nan)),
        ValueError, ("`targets`", "[0, 1]", "got nan", "row 1, column 2")),
    "binary shape": (
        lambda: xent.binary_cross_entropy(Z, Y),
        ValueError, ("`targets`", "(3, 4)", "got (3,)")),
    "binary dtype": (
        lambda: xent.binary_cross_entropy(Z, Z.astype(complex)), TypeError, ("`targets`", "got complex128")),
    "binary class_weight": (
        lambda: xent.binary_cross_entropy(Z, Q, class_weight=[1, 2]),
        TypeError, ("`class_weight`", "`pos_weight`")),
    "binary pos_weight": (
        lambda: xent.binary_cross_entropy(Z, Q, pos_weight=-1),
        ValueError, ("`pos_weight`", ">= 0", "got -1")),
    "binary pos_weight array": (
        lambda: xent.binary_cross_entropy(Z, Q, pos_weight=[1, 2]),
        TypeError, ("`pos_weight`", "number", "got [1, 2]")),
    "binary pos_weight text": (
        lambda: xent.binary_cross_entropy(Z, Q, pos_weight="3"),
        TypeError, ("`pos_weight`", "number", "got '3'")),
    "binary out is targets": (
        lambda: (q := Q.copy(), xent.binary_cross_entropy_with_grad(Z, q, out=q)),
        ValueError, ("`out`", "overlap")),
    "binary out holds labels": (
        lambda: (b := np.zeros((3, 4)), xent.binary_cross_entropy_with_grad(Z, b.view(int), out=b)),
        ValueError, ("`out`", "overlap")),
    "binary out overlaps targets": (
        lambda: (b := np.full((4, 4), 0.5), xent.binary_cross_entropy_with_grad(Z, b[1:], out=b[:-1])),
        ValueError, ("`out`", "overlap")),
    "binary out": (
        lambda: xent.binary_cross_entropy_with_grad(Z, Q, out=np.empty(3)),
        ValueError, ("`out`", "(3, 4)", "got (3,)")),
    "binary reduction": (
        lambda: xent.binary_cross_entropy(Z, Q, reduction="avg"), ValueError, ("`reduction`", "got 'avg'")),
    # linear
    "linear weight shape": (
        lambda: xent.linear_cross_entropy(X, W.T, Y), ValueError, ("`weight`", "(K, 2)", "got (2, 4)")),
    "linear weight axes": (
        lambda: xent.linear_cross_entropy(X, W[0], Y), ValueError, ("`weight`", "(K, 2)", "got (2,)")),
    "linear weight dtype": (
        lambda: xent.linear_cross_entropy(X, W.astype("f4"), Y),
        TypeError, ("`weight`", "float64", "got float32")),
    "linear bias shape": (
        lambda: xent.linear_cross_entropy(X, W, Y, bias=np.zeros(3)),
        ValueError, ("`bias`", "(4,)", "got (3,)")),
    "linear bias dtype": (
        lambda: xent.linear_cross_entropy(X, W, Y, bias=np.zeros(4, "f4")),
        TypeError, ("`bias`", "float64", "got float32")),
    "linear inputs": (lambda: xent.linear_cross_entropy("text", W, Y), TypeError, ("`inputs`", "got <U4")),
    "linear labels": (
        lambda: xent.linear_cross_entropy_with_grad(X, W, at(Y, 1, 8)),
        ValueError, ("`targets`", "[0, 4)", "got 8", "row 1")),
    # information
    "entropy above 1": (
        lambda: information.entropy([0.5, 1.5]), ValueError, ("`p`", "[0, 1", "got 1.5", "row 1")),
    "entropy NaN": (
        lambda: information.entropy([[0.5, np.nan]]), ValueError, ("`p`", "got nan", "row 0, column 1")),
    "kl second": (
        lambda: information.kl_divergence([0.5, 0.5], [-0.5, 1.0]), ValueError, ("`q`", "got -0.5", "row 0")),
    "js dtype": (
        lambda: information.js_divergence([0.5, 0.5], np.array(["a", "b"])), TypeError, ("`q`", "got <U1")),
    "kl shapes": (
        lambda: information.kl_divergence([0.5, 0.5], [0.2, 0.3, 0.5]),
        ValueError, ("`p` and `q`", "broadcast", "(2,)", "(3,)")),
    "js shapes": (
        lambda: information.js_divergence(np.full((3, 2), 0.5), np.full((4, 2), 0.5)),
        ValueError, ("`p` and `q`", "broadcast", "(3, 2)", "(4, 2)")),
    "cross-entropy shapes": (
        lambda: information.cross_entropy([0.5, 0.5], [0.2, 0.3, 0.5]),
        ValueError, ("`p` and `q`", "broadcast", "(2,)", "(3,)")),
    "decompose shapes": (
        lambda: information.decompose([0.5, 0.5], [0.2, 0.3, 0.5]),
        ValueError, ("`p` and `q`", "broadcast", "(2,)", "(3,)")),
    # backends
    "backend": (lambda: registry.get("cuda"), ValueError, ("`backend`", "cpu", "reference", "got 'cuda'")),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str) -> None:
    call, exception, words = CALLS[name]
    with raises(exception, words):
        call()


def test_an_option_is_checked_whatever_equal_one_was_accepted_before() -> None:
    """True == 1, also to the cache of options."""
    for loss in LOSSES:
        loss(Z, Y, ignore_index=1)
        with raises(TypeError, ("`ignore_index`", "integer", "got True")):
            loss(Z, Y, ignore_index=True)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="'xent' has no attribute 'cross_entrpy'"):
        xent.cross_entrpy  # noqa: B018


def test_a_failed_call_writes_nothing() -> None:
    out = np.full((3, 4), 7.0)
    for bad in (at(Y, 1, 9), at(Q, (2, 2), -1)):
        with pytest.raises(ValueError, match="`targets`"):
            xent.cross_entropy_with_grad(Z, bad, out=out)
    np.testing.assert_array_equal(out, 7.0)
