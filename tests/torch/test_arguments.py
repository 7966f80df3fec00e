"""Arguments of the losses of tensors: what is checked and when, divisors, what the call of a module takes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

Z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W, Y = torch.eye(3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
Q = torch.sigmoid(Z)
LOSSES = {
    "xent.cross_entropy": lambda z, **o: xent.cross_entropy(z, Y, **o),
    "cross_entropy": lambda z, **o: xt.cross_entropy(z, Y, **o),
    "xent.binary_cross_entropy": lambda z, **o: xent.binary_cross_entropy(z, Q, **o),
    "binary_cross_entropy_with_logits": lambda z, **o: xt.binary_cross_entropy_with_logits(z, Q, **o),
    "xent.linear_cross_entropy": lambda z, **o: xent.linear_cross_entropy(z, W, Y, **o),
    "linear_cross_entropy": lambda z, **o: xt.linear_cross_entropy(z, W, Y, **o),
    "linear_kl_divergence": lambda z, **o: xt.linear_kl_divergence(z, W, 2 * Z, W, **o),
    "linear_topk_kl_divergence": lambda z, **o: xt.linear_topk_kl_divergence(
        z, W, Y[:, None], -1 - Q[:, :1], **o
    ),
    "CrossEntropyLoss": lambda z, **o: xt.CrossEntropyLoss(**o)(z, Y),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


# Divisors.


@each_loss
def test_a_divisor_has_its_gradient(loss) -> None:
    """Of S/D it is −S/D²."""
    for needs_logits in (False, True):
        z = Z.clone().requires_grad_(needs_logits)
        divisor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        value = loss(z, denominator=divisor)
        value.backward()
        torch.testing.assert_close(value.detach(), loss(Z, denominator=3.0))
        torch.testing.assert_close(divisor.grad, -value.detach() / 3)
    _, tangent = torch.func.jvp(
        lambda d: loss(Z, denominator=d), (divisor.detach(),), (torch.ones((), dtype=torch.float64),)
    )
    torch.testing.assert_close(tangent, divisor.grad)


@each_loss
@pytest.mark.parametrize("bad", [[2.0, 3.0], [2.0], -2.0, np.nan, np.inf, 2j, True], ids=str)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_divisor_is_a_real_number(loss, bad, needs_grad: bool) -> None:
    divisor = torch.tensor(bad)
    if needs_grad and divisor.dtype == torch.bool:
        pytest.skip("has no gradient")
    with pytest.raises(ValueError, match="`denominator` must be"):
        loss(Z, denominator=divisor.requires_grad_(needs_grad))


@each_loss
def test_numbers_of_all_kinds_are_divisors(loss) -> None:
    expected = loss(Z, denominator=2.0)
    for same in (2, np.float32(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.bfloat16)):
        torch.testing.assert_close(loss(Z, denominator=same), expected, rtol=0, atol=0)
    assert loss(Z, denominator=torch.tensor(0)) == 0


# Weights.


WEIGHTS = [
    (xent.cross_entropy, Y, "class_weight", (3,), False),
    (xent.cross_entropy, Y, "sample_weight", (4,), True),
    (xt.cross_entropy, Y, "weight", (3,), True),
    (xt.cross_entropy, Y, "sample_weight", (4,), True),
    (xent.binary_cross_entropy, Q, "sample_weight", (4, 3), True),
    (xent.binary_cross_entropy, Q, "pos_weight", (3,), False),
    (xt.binary_cross_entropy_with_logits, Q, "weight", (1, 3), True),
    (xt.binary_cross_entropy_with_logits, Q, "pos_weight", (), True),
    (lambda z, y, **o: xent.linear_cross_entropy(z, W, y, **o), Y, "class_weight", (3,), False),
    (lambda z, y, **o: xent.linear_cross_entropy(z, W, y, **o), Y, "sample_weight", (4,), True),
    (lambda z, y, **o: xt.linear_cross_entropy(z, W, y, **o), Y, "weight", (3,), True),
    (lambda z, y, **o: xt.linear_kl_divergence(z, W, Z, W, **o), Y, "sample_weight", (4,), True),
]


@pytest.mark.parametrize(
    ("loss", "targets", "name", "shape", "is_signed"), WEIGHTS, ids=[w[2] for w in WEIGHTS]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_weights(loss, targets, name: str, shape, is_signed: bool, dtype, needs_grad: bool) -> None:
    for bad in (np.nan, np.inf, -np.inf) if is_signed else (np.nan, np.inf, -np.inf, -1.0):
        weight = torch.ones(shape, dtype=dtype)
        weight.view(-1)[-1] = bad
        weight.requires_grad_(needs_grad)
        with pytest.raises(ValueError, match=rf"`{name}` must be (finite|>= 0); got {bad}"):
            loss(Z, targets, **{name: weight})
        loss(Z, targets, validate=False, **{name: weight})
    if is_signed:
        assert loss(Z, targets, **{name: torch.full(shape, -1.0, dtype=dtype)}).isfinite()
    with pytest.raises(ValueError, match=rf"`{name}` must be real numbers"):
        loss(Z, targets, **{name: torch.ones(shape, dtype=torch.complex64)})


def test_a_mask_is_a_weight() -> None:
    mask = torch.tensor([True, False, True, True])
    assert xt.cross_entropy(Z, Y, sample_weight=mask) == xt.cross_entropy(Z[mask], Y[mask])


def test_negative_weights_of_elements_have_a_mean() -> None:
    weight = -torch.ones_like(Z)
    expected = xent.binary_cross_entropy(Z.numpy(), Q.numpy(), sample_weight=weight.numpy())
    torch.testing.assert_close(xent.binary_cross_entropy(Z, Q, sample_weight=weight).item(), expected.item())


# Validation.


BEYOND = torch.tensor([0, 7, 1, 1])
CHECKED = {
    "xent.row_statistics": lambda z, **o: xent.row_statistics(z, BEYOND, **o).log_prob,
    "row_statistics": lambda z, **o: xt.row_statistics(z, BEYOND, **o).log_prob,
    "xent.linear_row_statistics": lambda z, **o: xent.linear_row_statistics(z, W, BEYOND, **o).log_prob,
    "linear_row_statistics": lambda z, **o: xt.linear_row_statistics(z, W, BEYOND, **o).log_prob,
    "xent.cross_entropy": lambda z, **o: xent.cross_entropy(z, BEYOND, reduction="none", **o),
    "cross_entropy": lambda z, **o: xt.cross_entropy(z, BEYOND, reduction="none", **o),
    "linear_cross_entropy": lambda z, **o: xt.linear_cross_entropy(z, W, BEYOND, reduction="none", **o),
    "weight that asks for a gradient": lambda z, **o: xt.cross_entropy(
        z, BEYOND, torch.ones(3, requires_grad=True), reduction="none", **o
    ),
    "linear, weight that asks for a gradient": lambda z, **o: xt.linear_cross_entropy(
        z, W, BEYOND, weight=torch.ones(3, requires_grad=True), reduction="none", **o
    ),
}


@pytest.mark.parametrize("function", CHECKED.values(), ids=CHECKED)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_validate(function, needs_grad: bool) -> None:
    z = Z.clone().requires_grad_(needs_grad)
    for validate in ({}, {"validate": True}):
        with pytest.raises(
            IndexError, match=r"must be in \[0, 3\) or equal ignore_index=-100; got 7 at row 1"
        ):
            function(z, **validate)
    found = function(z, validate=False).detach()
    assert found.isnan().tolist() == [False, True, False, False]


def test_statistics_without_validation_are_those_of_arrays() -> None:
    options = {"validate": False, "want": xent.RowStatistics._fields}
    arrays = xent.row_statistics(Z.numpy(), BEYOND.numpy(), **options)
    for tensors in (
        xt.row_statistics(Z, BEYOND, **options),
        xt.linear_row_statistics(Z, W, BEYOND, **options),
        xent.linear_row_statistics(Z.numpy(), W.numpy(), BEYOND.numpy(), **options),
    ):
        for a, b in zip(arrays, tensors, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-13)


# A weight of more than two axes.


def test_a_stack_of_weights() -> None:
    x, w, b = Z, torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    y = torch.tensor([[0, 4], [1, 2], [3, 3], [2, 0]])
    logits = torch.einsum("nd,kpd->nkp", x, w) + b
    torch.testing.assert_close(xt.linear_cross_entropy(x, w, y, linear_bias=b), xt.cross_entropy(logits, y))
    for bad, words in (
        ({"linear_bias": b.T}, r"`linear_bias` must have shape \(5, 2\); got \(2, 5\)"),
        ({"linear_bias": b.flatten()}, r"`linear_bias` must have shape \(5, 2\); got \(10,\)"),
        ({"linear_bias": b.float()}, "`linear_bias` must have the dtype of `input`"),
        ({"linear_bias": b.to("meta")}, "`linear_bias` must be on that of `input`"),
        ({"input": x[:, :2]}, r"`linear_weight` must have shape \(K, d1, ..., D\) to go with `input`"),
        ({"input": x.float()}, "`linear_weight` must have the dtype of `input`"),
        ({"shift": 1}, "`shift` must be 0"),
    ):
        call = {"input": x, "linear_weight": w, "target": y} | bad
        with pytest.raises(RuntimeError, match=words):
            xt.linear_cross_entropy(**call)
    with pytest.raises(TypeError, match=r"`linear_bias` must be a torch\.Tensor; got `list`"):
        xt.linear_cross_entropy(x, w, y, linear_bias=[1.0])


# A single element.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_one_binary_logit_has_a_slope_in_forward_mode(dtype, reduction: str) -> None:
    z, q = torch.tensor(0.5, dtype=dtype), torch.tensor(0.25, dtype=dtype)
    for options in ({}, {"temperature": 2.0}, {"z_loss": 0.1, "weight": torch.tensor(2.0, dtype=dtype)}):
        loss = lambda z, o=options: xt.binary_cross_entropy_with_logits(z, q, reduction=reduction, **o)  # noqa: E731
        value, slope = torch.func.jvp(loss, (z,), (torch.ones_like(z),))
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        assert value.shape == slope.shape == ()
        torch.testing.assert_close(slope, gradient.to(slope.dtype), rtol=1e-3, atol=0)


# Integers.


def test_integers_of_all_kinds() -> None:
    expected = xt.linear_cross_entropy(Z, W, Y, shift=1, ignore_index=1)
    for kind in (np.int64, np.uint8, torch.tensor, np.array):
        assert xt.linear_cross_entropy(Z, W, Y, shift=kind(1), ignore_index=kind(1)) == expected
        assert xent.linear_cross_entropy(
            Z.numpy(), W.numpy(), Y.numpy(), shift=kind(1), ignore_index=kind(1)
        ) == pytest.approx(expected.item(), rel=1e-13)


# The call of a module.


def test_the_call_of_a_module() -> None:
    late, early = torch.tensor([1.0, 0.0, 2.0, 0.5]).double(), torch.ones(4).double()
    for make, function in (
        (lambda **o: xt.CrossEntropyLoss(**o), xt.cross_entropy),
        (lambda **o: layer(**o), lambda z, y, **o: xt.linear_cross_entropy(z, W, y, **o)),
    ):
        expected = function(Z, Y, sample_weight=late, denominator=7.0)
        for options in ({}, {"sample_weight": early, "denominator": 3.0}):
            assert make(**options)(Z, Y, sample_weight=late, denominator=7.0) == expected
        by_constructor = make(sample_weight=late, denominator=7.0)
        assert by_constructor(Z, Y) == expected
        torch.testing.assert_close(by_constructor(Z, Y, denominator=14.0), expected / 2)
        assert make(sample_weight=early)(Z, Y) == function(Z, Y)
    weight = torch.rand(4, 3, dtype=torch.float64)
    expected = xt.binary_cross_entropy_with_logits(Z, Q, weight, denominator=5.0)
    for options in ({}, {"weight": torch.ones(3), "denominator": 2.0}):
        module = xt.BCEWithLogitsLoss(**options)
        assert module(Z, Q, sample_weight=weight, denominator=5.0) == expected
        assert module(Z, Q) == xt.binary_cross_entropy_with_logits(Z, Q, **options)
    with pytest.raises(ValueError, match="`sample_weight` must broadcast to the shape of `input`"):
        module(Z, Q, sample_weight=torch.ones(7))


def layer(**options):
    made = xt.LinearCrossEntropyLoss(3, 3, dtype=torch.float64, **options)
    made.linear.weight.data.copy_(W)
    return made.requires_grad_(False)
