"""Tensors where something is 0, saturated, narrow or no literal, beside plain PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from xent.engine import memory  # noqa: E402

# PyTorch's own forward mode loads torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

INTEGERS = [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]
ROWS, WIDTH, K = 5, 4, 7


def operands(dtype: Any = torch.float64) -> tuple[Any, Any, Any]:
    x, w = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(K, WIDTH, dtype=dtype)
    return x, w, torch.arange(ROWS) % K


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# Labels of few bits: 156 in eight of them has the bits of −100.

LABELLED = {
    "cross_entropy": lambda z, y: xt.cross_entropy(z, y),
    "classes last": lambda z, y: xent.cross_entropy(z, y),
    "ordinary code": lambda z, y: torch.func.functional_call(xt.CrossEntropyLoss(), {}, (z, y)),
    "gradient": lambda z, y: torch.func.grad_and_value(lambda z: xt.cross_entropy(z, y))(z)[1],
    "statistics": lambda z, y: -xt.row_statistics(z, y).log_prob.mean(),
    "linear": lambda z, y: xt.linear_cross_entropy(torch.eye(2), z.T.contiguous(), y),
    "linear, classes last": lambda z, y: xent.linear_cross_entropy(torch.eye(2), z.T.contiguous(), y),
    "linear statistics": lambda z, y: -xt.linear_row_statistics(torch.eye(2), z.T, y).log_prob.mean(),
}


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("function", LABELLED.values(), ids=LABELLED)
def test_labels_are_compared_as_numbers(function: Any, dtype: Any) -> None:
    z, y = torch.randn(2, 200), torch.tensor([156, 7])
    close(function(z, y.to(dtype)), F.cross_entropy(z, y))


def test_binary_labels_of_eight_bits() -> None:
    z, y = torch.randn(3), torch.tensor([0, 1, 156], dtype=torch.uint8)
    with pytest.raises(ValueError, match="156"):
        xent.binary_cross_entropy(z, y)


# Derivatives in targets and weights, at 0 too.


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_one_hot_probabilities_have_the_gradient_of_any_others(mode: str) -> None:
    z, q = torch.randn(4, 3, dtype=torch.float64), F.one_hot(torch.tensor([0, 1, 2, 0]), 3).double()
    x, w, _ = operands()
    p = F.one_hot(torch.arange(ROWS), K).double()
    jacobian = torch.func.jacrev if mode == "reverse" else torch.func.jacfwd
    close(jacobian(lambda q: xt.cross_entropy(z, q))(q), jacobian(lambda q: F.cross_entropy(z, q))(q))
    ours = jacobian(lambda q: xt.linear_cross_entropy(x, w, q))(p)
    close(ours, jacobian(lambda q: F.cross_entropy(x @ w.T, q))(p))
    mixed = [
        torch.func.jacrev(torch.func.grad(lambda z, q, f=f: f(z, q)), argnums=1)(z, q)
        for f in (xt.cross_entropy, F.cross_entropy)
    ]
    close(*mixed)


def test_excluded_classes_give_no_nan_to_the_gradient_of_probabilities() -> None:
    z = torch.tensor([[1.0, -torch.inf, 0.0]])
    q = torch.tensor([[0.5, 0.0, 0.5]], requires_grad=True)
    xt.cross_entropy(z, q).backward()
    assert q.grad.isfinite().all()


def test_binary_targets_of_0_and_1_have_a_gradient() -> None:
    z, t = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 1, 0.5], requires_grad=True)
    ours = torch.autograd.grad(xt.binary_cross_entropy_with_logits(z, t, reduction="sum"), t)
    close(ours, torch.autograd.grad(F.binary_cross_entropy_with_logits(z, t, reduction="sum"), t))


@pytest.mark.parametrize("loss", ["dense", "linear", "binary"])
def test_a_weight_of_0_has_the_loss_for_its_gradient(loss: str) -> None:
    x, w, y = operands()
    if loss == "binary":
        omega = torch.zeros(ROWS, dtype=torch.float64, requires_grad=True)
        z, t = x[:, 0], torch.rand(ROWS, dtype=torch.float64)
        total = xt.binary_cross_entropy_with_logits(z, t, omega, reduction="sum")
        expected = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    else:
        omega = torch.zeros(ROWS, dtype=torch.float64, requires_grad=True)
        options = {"sample_weight": omega, "reduction": "sum"}
        dense = loss == "dense"
        total = (
            xt.cross_entropy(x @ w.T, y, **options) if dense else xt.linear_cross_entropy(x, w, y, **options)
        )
        expected = F.cross_entropy(x @ w.T, y, reduction="none")
    close(torch.autograd.grad(total, omega)[0], expected)


def test_a_class_weight_of_0_has_a_gradient() -> None:
    x, w, y = operands()
    c = torch.arange(K, dtype=torch.float64, requires_grad=True)
    losses = F.cross_entropy(x @ w.T, y, reduction="none")
    expected = (c[y] * losses).sum() / c[y].sum()
    (ours,) = torch.autograd.grad(xt.cross_entropy(x @ w.T, y, c), c)
    close(ours, torch.autograd.grad(expected, c)[0])


# The focal loss where p = 1.


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5, 2.0])
def test_saturated_focal_losses_have_derivatives(gamma: float) -> None:
    z = torch.tensor([[200.0, 0.0]])
    label = torch.tensor([0])
    f = lambda z: xt.cross_entropy(z, label, focal_gamma=gamma)  # noqa: E731
    linear = lambda z: xt.linear_cross_entropy(z, torch.eye(2), label, focal_gamma=gamma)  # noqa: E731
    product = xent.cross_entropy_hvp(z.numpy(), label.numpy(), z.numpy(), focal_gamma=gamma)
    for function in (f, linear):
        assert not torch.func.grad(function)(z).any()
        assert not torch.autograd.functional.hessian(function, z).any()
        assert not torch.func.hessian(function)(z).any()
    assert not product.any()
    leaf = z.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(f, leaf, use_reentrant=False).backward()
    assert not leaf.grad.any()


# Graphs.

COMPILED = {"backend": "aot_eager", "fullgraph": True}


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    torch._dynamo.reset()


TRANSFORMED = {
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacfwd": torch.func.jacfwd,
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum()),
    "hessian": lambda f: torch.func.hessian(lambda x: f(x).sum()),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda row: f(row[None]).sum())),
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED)
def test_compiled_transforms_of_the_projected_loss(transform: Any, reduction: str) -> None:
    x, w, _ = operands()
    label = torch.tensor([3])
    ours = lambda x: xt.linear_cross_entropy(x, w, label.expand(x.shape[:1]), reduction=reduction)  # noqa: E731
    theirs = lambda x: F.cross_entropy(x @ w.T, label.expand(x.shape[:1]), reduction=reduction)  # noqa: E731
    close(torch.compile(transform(ours), **COMPILED)(x), transform(theirs)(x))


OPTION = {
    "label_smoothing": lambda z, e: xt.cross_entropy(z, torch.arange(5), label_smoothing=e),
    "temperature": lambda z, e: xt.cross_entropy(z, torch.arange(5), temperature=e),
    "softcap": lambda z, e: xt.row_statistics(z, torch.arange(5), softcap=e).log_prob,
    "projected": lambda z, e: xt.linear_cross_entropy(z, z, torch.arange(5), z_loss=e),
    "binary": lambda z, e: xt.binary_cross_entropy_with_logits(z, torch.sigmoid(z), label_smoothing=e),
}


@pytest.mark.parametrize("function", OPTION.values(), ids=OPTION)
def test_options_may_change_between_calls_of_a_graph(function: Any) -> None:
    z, compiled = torch.randn(5, 6), torch.compile(function, **COMPILED)
    for value in (0.1, 0.2, 0.35):
        close(compiled(z, value), function(z, value))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, y: xt.linear_cross_entropy(x, w, y),
        lambda x, w, y: xt.linear_row_statistics(x, w, y).entropy,
        lambda x, w, y: xt.linear_kl_divergence(x, w, x, 2 * w),
        lambda x, w, y: xt.row_statistics(x @ w.T, y).lse,
        lambda x, w, y: xt.binary_cross_entropy_with_logits(x, torch.sigmoid(x)),
    ],
)
def test_dynamic_shapes(function: Any) -> None:
    compiled = torch.compile(function, dynamic=True, **COMPILED)
    x, w, y = operands()
    for rows in (ROWS, 3):
        close(compiled(x[:rows], w, y[:rows]), function(x[:rows], w, y[:rows]))


class Module(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, w: Any, y: Any) -> Any:
        return self.function(x, w, y)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, y: xt.linear_cross_entropy(x, w, y),
        lambda x, w, y: xt.linear_row_statistics(x, w, y).log_prob.sum(),
        lambda x, w, y: xt.linear_kl_divergence(x, w, x, 2 * w),
    ],
)
def test_exported_graphs_take_any_number_of_rows(function: Any) -> None:
    x, w, y = operands()
    rows = torch.export.Dim("rows", min=2)
    shapes = {"x": {0: rows}, "w": None, "y": {0: rows}}
    exported = torch.export.export(Module(function), (x, w, y), dynamic_shapes=shapes).module()
    more, labels = torch.randn(11, WIDTH, dtype=torch.float64), torch.arange(11) % K
    close(exported(more, w, labels), function(more, w, labels))


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_a_mean_is_not_rounded_in_half_precision(way: str) -> None:
    """Neither the upstream gradient, 1/3, nor the mean's, 1/300, is a bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(300, 50, generator=generator).bfloat16() for _ in range(2))
    y, leaf = torch.arange(300), x.clone().requires_grad_()

    def mean(x: Any) -> Any:
        return xt.linear_cross_entropy(x, w, y) / 3

    loss = mean(leaf) if way == "eager" else torch.compile(mean, **COMPILED)(leaf)
    (found,) = torch.autograd.grad(loss, leaf)
    wide = leaf.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(xt.linear_cross_entropy(wide, w.double(), y) / 3, wide)
    along = (found.double() * exact).sum() / exact.pow(2).sum()
    assert abs(along - 1) < 5e-4  # the nearest bfloat16 is 2e-3 off


# The rest.


def test_targets_are_mixed_in_the_precision_of_the_loss() -> None:
    x, w, _ = operands()
    q = torch.softmax(torch.randn(ROWS, K), -1)
    ours = xt.linear_cross_entropy(x, w, q, label_smoothing=0.1)
    torch.testing.assert_close(ours, xt.cross_entropy(x @ w.T, q, label_smoothing=0.1), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "options",
    [{"shift": 1}, {"shift": -7}, {"chunk_bytes": 100}, {"logits_dtype": torch.float32}, {"want": ("loss",)}],
)
def test_a_weight_of_many_axes_takes_no_chunks(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`shift` must be 0, and `chunk_bytes`, `logits_dtype`, .* None"):
        xt.linear_cross_entropy(torch.randn(5, 3), torch.randn(4, 2, 3), torch.zeros(5, 2).long(), **options)


def test_modules_say_their_options_and_know_no_others() -> None:
    loss = xt.CrossEntropyLoss(ignore_index=3, label_smoothing=0.2, z_loss=1e-4)
    assert repr(loss) == (
        "CrossEntropyLoss(reduction='mean', ignore_index=3, label_smoothing=0.2, z_loss=0.0001)"
    )
    for module in (
        xt.CrossEntropyLoss,
        xt.BCEWithLogitsLoss,
        lambda **o: xt.LinearCrossEntropyLoss(2, 3, **o),
    ):
        with pytest.raises(TypeError, match="Loss has no option `gamma`"):
            module(gamma=2.0)


def test_integers_are_not_cast_by_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="`input` must be float64"):
        xt.linear_cross_entropy(torch.ones(2, 3, dtype=torch.long), torch.ones(4, 3), torch.zeros(2).long())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_probabilities_of_any_dtype_beside_plain_logits(dtype: Any) -> None:
    z, q = torch.randn(4, 3, requires_grad=True), torch.softmax(torch.randn(4, 3), -1).to(dtype)
    ours, theirs = xt.cross_entropy(z, q), F.cross_entropy(z, q.float())
    close(ours, theirs)
    close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z))


Z, X = torch.zeros(2, 3), torch.zeros(2, 1)
ELSEWHERE = {  # calls with labels and a weight that are not where Z and X are
    "`target` must be on that of `input`": lambda y, w: xt.cross_entropy(Z, y),
    "`weight` must be on that of `input`": lambda y, w: xt.cross_entropy(Z, torch.tensor([0, 1]), w),
    "`targets` must be on that of `logits`": lambda y, w: xent.cross_entropy(Z, y),
    "`labels` must be on that of `logits`": lambda y, w: xt.row_statistics(Z, y),
    "`linear_weight` must be on that of `input`": lambda y, w: xt.linear_cross_entropy(X, w[:, None], y),
    "`targets` must be on that of `inputs`": lambda y, w: xent.linear_cross_entropy(X, Z.T[:, :1], y),
    "`pos_weight` must be on that of `input`": lambda y, w: xt.binary_cross_entropy_with_logits(
        Z, Z, pos_weight=w
    ),
}


@pytest.mark.parametrize("message", ELSEWHERE)
def test_a_tensor_on_another_device_is_named(message: str) -> None:
    y, w = torch.zeros(2, dtype=torch.int64, device="meta"), torch.ones(3, device="meta")
    with pytest.raises(ValueError, match=f"same device: {message}, cpu; got meta"):
        ELSEWHERE[message](y, w)


def test_a_sparse_tensor_is_named() -> None:
    z, y = torch.eye(3), torch.arange(3)
    for loss in (xt.cross_entropy, xent.cross_entropy):
        with pytest.raises(
            ValueError, match=r"must be a dense tensor, torch\.strided; got torch\.sparse_coo"
        ):
            loss(z.to_sparse(), y)
        with pytest.raises(ValueError, match=r"`targets?` must be a dense tensor"):
            loss(z, z.to_sparse())


def test_tensors_without_values() -> None:
    x, w, y = (a.to("meta") for a in operands(torch.float32))
    assert xt.linear_cross_entropy(x, w, y).shape == ()
    z = (x @ w.T).requires_grad_()
    xt.cross_entropy(z, y).backward()
    assert z.grad.shape == z.shape


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_binary_factors_do_not_widen_the_input(name: str) -> None:
    z, q = torch.zeros(4, 3), torch.zeros(4, 3)
    for good in ((), (1,), (3,), (4, 1), (4, 3)):
        assert xt.binary_cross_entropy_with_logits(
            z, q, reduction="none", **{name: torch.ones(good)}
        ).shape == (4, 3)
    for bad in ((4,), (1, 4, 3), (2, 3), (0,)):
        with pytest.raises(ValueError, match=rf"`{name}` must broadcast to the shape of `input`, \(4, 3\)"):
            xt.binary_cross_entropy_with_logits(z, q, **{name: torch.ones(bad)})
    with pytest.raises(TypeError, match=f"`{name}` must be a torch.Tensor; got `float`"):
        xt.binary_cross_entropy_with_logits(z, q, **{name: 2.0})


def test_more_than_the_memory_is_a_memory_error() -> None:
    for size in (1 << 50, 1 << 70):
        with pytest.raises(MemoryError, match="bytes"):
            memory.empty((size,), np.float32)
