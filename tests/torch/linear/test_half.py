"""Second derivatives of projected losses in half precision, where rows are left out."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.test_silent_rows import D, K, N, random  # noqa: E402

PENALISED = {
    "linear_cross_entropy": lambda x, w, y, **o: xt.linear_cross_entropy(x, w, y, **o),
    "one loss a row": lambda x, w, y, **o: xt.linear_cross_entropy(x, w, y, reduction="none", **o).sum(),
    "linear_row_statistics": lambda x, w, y, **o: xt.linear_row_statistics(x, w, y, **o).log_prob.mean(),
    "linear_kl_divergence": lambda x, w, y, **o: xt.linear_kl_divergence(
        x, w, 2 * x.detach(), w.detach(), labels=y, **o
    ),
    "top-k divergence": lambda x, w, y, **o: xt.linear_topk_kl_divergence(
        x, w, torch.tensor([[0, 2]] * N), torch.full((N, 2), -1.0), labels=y, **o
    ),
}
LEFT_OUT = {
    "ignored": {},
    "shift": {"shift": 1},
    "weight 0": {"sample_weight": torch.tensor([1.0, 0.0, 1.0, 2.0])},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"], ids=str)
@pytest.mark.parametrize("way", LEFT_OUT)
@pytest.mark.parametrize("function", PENALISED)
def test_second_derivatives_in_half_precision(function: str, way: str, dtype: Any) -> None:
    if ("statistics" in function and way == "weight 0") or ("divergence" in function and way == "shift"):
        pytest.skip("no such argument")
    y = torch.tensor([0, 1, -100, 2])
    cast = torch.float32 if dtype == "autocast" else dtype

    def penalty(x: Any, w: Any) -> Any:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast" and x.dtype == torch.float32):
            loss = PENALISED[function](x, w, y, **LEFT_OUT[way])
            slopes = torch.autograd.grad(loss, (x, w), create_graph=True)
            return torch.autograd.grad(sum(s.pow(2).sum() for s in slopes), (x, w))

    x, w = random(N, D).bfloat16().to(cast), random(K, D).bfloat16().to(cast)
    for found, expected in zip(penalty(x, w), penalty(x.double(), w.double()), strict=True):
        assert found.dtype == cast
        torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.02)
