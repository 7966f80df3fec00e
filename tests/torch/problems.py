"""Small problems for the tests of tensors: logits and labels, variants with their NumPy twins, transforms."""

from __future__ import annotations

import numpy as np
import torch

import xent.torch as xt

F = torch.nn.functional


def arguments_of(variant, kind, rows=(6,), num_classes=5, dtype=torch.float64):
    """(logits, target, keywords) for `xt.cross_entropy`, and the same for `xent.cross_entropy`."""
    rng = np.random.default_rng(7)
    z = rng.normal(0, 2, (*rows, num_classes))
    target, options = variant.make(kind, rows, num_classes, rng)
    options["denominator"] = variant.denominator
    mine = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    mine["weight"] = mine.pop("class_weight", None)
    return torch.tensor(z, dtype=dtype), torch.tensor(target), mine, (z, target, options)


def plain(seed=0, rows=(6,), num_classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*rows, num_classes, generator=generator, dtype=dtype)
    return z, torch.randint(0, num_classes, rows, generator=generator)


def close(a, b, rtol=1e-10, atol=1e-12):
    """Assert that tensors are close, of whatever dtype."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=False)


def losses(y, **options):
    """Ours and PyTorch's as functions of the logits."""
    return (
        lambda z: xt.cross_entropy(z, y, **options),
        lambda z: F.cross_entropy(z, y, **options),
    )


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f),
    "hessian": lambda f: torch.func.hessian(f),
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "jacfwd of jacfwd": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    "third": lambda f: torch.func.jacfwd(torch.func.hessian(f)),
    "jvp": lambda f: lambda z: torch.func.jvp(f, (z,), (torch.cos(z),)),
    "vmap of grad": lambda f: lambda z: torch.func.vmap(torch.func.grad(f))(torch.stack([z, 2 * z])),
    "grad of vmap": lambda f: torch.func.grad(
        lambda z: torch.func.vmap(f, in_dims=2)(torch.stack([z, -z], 2)).sum()
    ),
    "functional_call": lambda f: torch.func.vjp(f, torch.zeros(6, 5, dtype=torch.float64))[1],
}
