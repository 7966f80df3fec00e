"""PyTorch's own samples of its losses, shipped in its wheel, through ours."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402
from torch.testing._internal.common_modules import module_db  # noqa: E402

import xent.torch as xt  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

FUNCTIONS = {
    "nn.functional.cross_entropy": xt.cross_entropy,
    "nn.functional.linear_cross_entropy": xt.linear_cross_entropy,
    "nn.functional.binary_cross_entropy_with_logits": xt.binary_cross_entropy_with_logits,
}
MODULES = {
    torch.nn.CrossEntropyLoss: xt.CrossEntropyLoss,
    torch.nn.LinearCrossEntropyLoss: xt.LinearCrossEntropyLoss,
    torch.nn.BCEWithLogitsLoss: xt.BCEWithLogitsLoss,
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OPS = [op for op in op_db if op.name in FUNCTIONS]
COUNT = {"nn.functional.cross_entropy": 21, "nn.functional.binary_cross_entropy_with_logits": 26}


def name_of(op) -> str:
    return f"{op.name.rpartition('.')[2]} {op.variant_test_name}".strip()


def leaves(*values):
    return [x for x in values if isinstance(x, torch.Tensor) and x.requires_grad]


def wide(x):
    if isinstance(x, torch.Tensor) and x.is_floating_point():
        return x.detach().double().requires_grad_(x.requires_grad)
    return x


def close(ours, truth, dtype, note):
    """Ours against PyTorch in float64 on the same numbers."""
    eps = torch.finfo(dtype).eps
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6}.get(dtype, 1.5 * eps)
    small = (
        tolerance
        if dtype in (torch.float64, torch.float32)
        else 3 * torch.finfo(dtype).smallest_normal + 1e-6
    )
    torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=small, msg=lambda m: f"{note}\n{m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_values_and_gradients(op, dtype):
    count = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        count += 1
        kwargs = {k: v for k, v in sample.kwargs.items() if k != "options"}
        note = f"{tuple(sample.input.shape)} {kwargs}"
        if op.name == "nn.functional.linear_cross_entropy" and dtype in DTYPES[2:]:
            continue  # the product's own rounding: `test_half_precision` of linear/test_linear.py
        ours = FUNCTIONS[op.name](sample.input, *sample.args, **kwargs)
        exact = [wide(x) for x in (sample.input, *sample.args)]
        exact_kwargs = {k: wide(v) for k, v in kwargs.items()}
        truth = op.op(*exact, **exact_kwargs)
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(ours, truth, torch.float64 if dtype == torch.float64 else torch.float32, note)
        mine, theirs = (
            torch.autograd.grad(loss.sum(), leaves(*xs), allow_unused=True)
            for loss, xs in (
                (ours, (sample.input, *sample.args, *kwargs.values())),
                (truth, (*exact, *exact_kwargs.values())),
            )
        )
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None) == (b is None), note
            if a is not None:
                assert a.dtype == dtype
                close(a, b, dtype, note)
    assert count >= COUNT.get(op.name, 50)


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_derivatives_of_both_orders_and_modes(op):
    seen = set()
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        kwargs = {k: v for k, v in sample.kwargs.items() if k != "options"}
        kinds = tuple((k, v if isinstance(v, str | int | float) else type(v)) for k, v in kwargs.items())
        key = (sample.input.ndim, len(leaves(*sample.args)), kinds)
        if key in seen:
            continue
        seen.add(key)

        def function(*tensors, sample=sample, kwargs=kwargs):
            queue = iter(tensors)
            turn = lambda x: next(queue) if leaves(x) else x  # noqa: E731
            arguments = [turn(x) for x in (sample.input, *sample.args)]
            return FUNCTIONS[op.name](*arguments, **{k: turn(v) for k, v in kwargs.items()})

        tensors = tuple(leaves(sample.input, *sample.args, *kwargs.values()))
        assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def module_inputs(module, dtype):
    (info,) = [m for m in module_db if m.module_cls is module]
    for training in (False, True):
        yield from info.module_inputs_func(info, "cpu", dtype, True, training)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_modules(module, dtype):
    count = 0
    for sample in module_inputs(module, dtype):
        count += 1
        made, called = sample.constructor_input, sample.forward_input
        kwargs = {k: v for k, v in made.kwargs.items() if k not in ("options", "device")}
        theirs = module(*made.args, **kwargs)
        ours = MODULES[module](*made.args, **kwargs)
        ours.load_state_dict(theirs.state_dict())
        a, b = ours(*called.args, **called.kwargs), theirs(*called.args, **called.kwargs)
        if made.kwargs.get("ignore_index") is not None and b.ndim == 0 and b.isnan():
            # The labels are drawn: a mean over none (docs/differences.md).
            assert (called.args[1] == theirs.ignore_index).all()
            assert a == 0
            assert not torch.autograd.grad(a, leaves(*called.args))[0].any()
            continue
        torch.testing.assert_close(a, b)
        for x, y in zip(
            *(torch.autograd.grad(loss.sum(), leaves(*called.args), allow_unused=True) for loss in (a, b)),
            strict=True,
        ):
            torch.testing.assert_close(x, y)
    assert count >= {torch.nn.CrossEntropyLoss: 100}.get(module, 4), count


def test_errors_are_those_of_pytorch():
    (info,) = [m for m in module_db if m.module_cls is torch.nn.CrossEntropyLoss]
    errors = info.module_error_inputs_func(info, "cpu", torch.float64, False, False)
    assert len(errors) == 7
    for error in errors:
        made, called = error.module_error_input.constructor_input, error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            xt.CrossEntropyLoss(*made.args, **made.kwargs)(*called.args, **called.kwargs)
