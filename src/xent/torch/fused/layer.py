"""`fuse` and `unfuse`: a linear layer that returns `Logits` in training."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

import torch
from torch.nn import Linear, Module

from xent.torch import arguments
from xent.torch.fused import guards, report, wrappers
from xent.torch.fused.logits import Logits
from xent.torch.linear.chunked import Operands
from xent.torch.linear.loss import autocast_operands

Tensor = torch.Tensor
Model = TypeVar("Model")


def fuse(model_or_linear: Model) -> Model:
    """Train a language model, or a linear layer, without the matrix of its logits in memory.

    In training the output layer then returns an object that stands for its logits. Their
    `torch.nn.functional.cross_entropy`, by whatever code, is computed by `linear_cross_entropy`: of labels,
    with any reduction, class weights and label smoothing, also after a change of shape, slices and masks of
    rows, a conversion to float32, a product with a positive number, and a softcap by tanh. So is their
    `xent.torch.cross_entropy`, with its options. For every other operation the logits are computed, by the
    same operations as without ``fuse``, and kept; the first time there is a warning.
    `xent.torch.fused.counts` says how often each happened.

    Parameters
    ----------
    model_or_linear : torch.nn.Linear, or a model whose ``get_output_embeddings()`` is one
        A model of transformers, of any class, also with adapters of peft. It is changed in place: the layer
        gets another ``forward``. Parameters, their names and ``state_dict`` stay as they are. Call ``fuse``
        again after the layer was replaced, as by ``resize_token_embeddings``.

    Returns
    -------
    torch.nn.Linear or model
        ``model_or_linear`` itself.

    Raises
    ------
    TypeError
        If ``model_or_linear`` is neither.
    ValueError
        If the forward of the output layer is not that of `torch.nn.Linear`: a quantised layer, say, or one
        whose forward another library has replaced.

    Notes
    -----
    The logits are not an instance of `torch.Tensor`. In eval mode, in exported graphs, and where a hook or a
    wrapper reads the output of the layer, the layer returns a tensor. An error, not another result, is what
    follows if the logits are asked for after the weight has changed, or given to
    `torch.autograd.Function.apply`. docs/differences.md says where the loss differs from PyTorch's.

    Examples
    --------
    >>> import torch, xent.torch
    >>> head = xent.torch.fuse(torch.nn.Linear(8, 1000))
    >>> logits = head(torch.randn(2, 16, 8))
    >>> logits
    Logits(shape=(2, 16, 1000), dtype=torch.float32, device='cpu')
    >>> labels = torch.randint(0, 1000, (2, 16))
    >>> loss = torch.nn.functional.cross_entropy(logits.view(-1, 1000), labels.view(-1))
    >>> loss.backward()
    >>> tuple(head.weight.grad.shape)
    (1000, 8)
    """
    layer = _output_layer(model_or_linear)
    _require_forward(layer)
    layer.forward = MethodType(forward, layer)
    if model_or_linear is not layer:
        wrappers.watch(model_or_linear)
    return model_or_linear


def unfuse(model_or_linear: Model) -> Model:
    """Undo `fuse`; nothing happens to a model that is not fused.

    Parameters
    ----------
    model_or_linear : torch.nn.Linear, or a model whose ``get_output_embeddings()`` is one

    Returns
    -------
    torch.nn.Linear or model
        ``model_or_linear`` itself.

    Raises
    ------
    TypeError
        If ``model_or_linear`` is neither.

    Examples
    --------
    >>> import torch, xent.torch
    >>> head = xent.torch.unfuse(xent.torch.fuse(torch.nn.Linear(8, 1000)))
    >>> type(head(torch.randn(2, 8)))
    <class 'torch.Tensor'>
    """
    layer = _output_layer(model_or_linear)
    if getattr(vars(layer).get("forward"), "__func__", None) is forward:
        del layer.forward
    if model_or_linear is not layer:
        wrappers.unwatch(model_or_linear)
    return model_or_linear


def forward(self: Linear, input: Tensor) -> Any:
    """In place of `torch.nn.Linear.forward`: `Logits`, or the tensor where PyTorch is to compute it."""
    layer = guards.called(self)
    weight, bias = layer.weight, layer.bias
    operands = autocast_operands(Operands(input, weight, bias))
    reason = guards.reason_for_pytorch(layer, operands)
    surroundings = wrappers.around(layer) if reason is None else wrappers.Around(reason=reason)
    if surroundings.reason is not None:
        report.count(f"by PyTorch: {surroundings.reason}")
        return torch.nn.functional.linear(input, weight, bias)
    return Logits.of_layer(guards.Source(operands, surroundings.watchers))


def _output_layer(model: Any) -> Any:
    layer = model
    if isinstance(model, Module) and not isinstance(model, Linear):
        find = getattr(model, "get_output_embeddings", None)
        layer = model if find is None else find()
    if hasattr(layer, "get_base_layer"):  # of peft: the layer below its adapters
        layer = layer.get_base_layer()
    if not isinstance(layer, Linear):
        of_model = "" if layer is model else f", whose `get_output_embeddings()` is `{type(layer).__name__}`"
        error = TypeError if layer is model else arguments.ArgumentError
        raise error(
            "`model_or_linear` must be a torch.nn.Linear, or a model whose `get_output_embeddings()` is one; "
            f"got `{type(model).__name__}`{of_model}"
        )
    return layer


def _require_forward(layer: Linear) -> None:
    method = vars(layer).get("forward")  # an unpickled layer has that of its class here
    is_known = method is None or getattr(method, "__func__", None) in (forward, Linear.forward)
    if type(layer).forward is not Linear.forward or not is_known:
        where = f"`{type(layer).__name__}`" if is_known else "another library, which has replaced it"
        raise arguments.ArgumentError(
            "the output layer of `model_or_linear` must have the forward of torch.nn.Linear; got that of "
            f"{where}"
        )
