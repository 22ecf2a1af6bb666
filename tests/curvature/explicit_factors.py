"""Kronecker factors from explicit Jacobians and Hessians in double precision, to compare with."""

import torch
from torch import nn
from torch.func import jacrev

from randbp.curvature.weight_matrices import Form
from randbp.layers import kind_of


def watched(model, x):
    """The output, and each layer's input and output ``{name: (module, input, output)}``."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if kind_of(module):

            def note(module, given, output, name=name):
                seen[name] = (module, given[0].detach(), output)
                return output.clone()  # the next module may work in place

            handles.append(module.register_forward_hook(note))
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, seen


def channels(module, tensor):
    """``[E, N, D, *O]``, or ``[E, N, *T, D]`` of a linear layer, as ``[E, N, G, d, O]``."""
    if isinstance(module, nn.Linear):
        tensor = tensor.movedim(-1, 2)
    return tensor.unsqueeze(-1).flatten(3).unflatten(2, (Form.of(module).groups, -1))


def cotangents(model, x):
    """The model's output, and by layer: module, input, output, and the Jacobian of the model's output by the layer's.

    ``J`` ``[E, N, G, d, O]`` are those of the ``E`` entries of each example's output.
    """
    output, seen = watched(model, x)
    rows = output.reshape(len(output), -1)
    grads = [
        torch.autograd.grad(rows[:, entry].sum(), [out for *_, out in seen.values()], retain_graph=True)
        for entry in range(rows.shape[1])
    ]
    found = {}
    for number, (name, (module, given, out)) in enumerate(seen.items()):
        jacobian = torch.stack([each[number] for each in grads])
        found[name] = (module, given, out.detach(), channels(module, jacobian))
    return output.detach(), found


def input_factor(u, approximation):
    """From unfolded inputs ``[N, G, R, O]``."""
    if approximation == "reduce":
        u = u.mean(3, keepdim=True)
    return torch.einsum("ngro,ngso->grs", u, u) / len(u)


def grad_factor(jacobian, hessians, approximation):
    """``Σ_n Σ_op Jᵀ H J`` or ``1/O Σ_n Σ_o``, from the Hessians ``[N, E, E]`` with respect to the model's output."""
    if approximation == "reduce":
        summed = jacobian.sum(4)
        return torch.einsum("engd,nef,fngc->gdc", summed, hessians, summed)
    return torch.einsum("engdo,nef,fngco->gdc", jacobian, hessians, jacobian) / jacobian.shape[4]


def output_hessians(loss, output, target):
    """The Hessians of the reduced loss ``[N, E, E]``."""
    count = output.numel()
    whole = torch.autograd.functional.hessian(lambda f: loss(f, target), output).reshape(count, count)
    each = count // len(output)
    return torch.stack([whole[n * each : (n + 1) * each, n * each : (n + 1) * each] for n in range(len(output))])


def gradient_squares(loss, output, target, terms):
    """``1/M g gᵀ`` ``[N, E, E]`` of a mean with ``terms`` terms, ``g gᵀ`` of a sum (``terms=1``)."""
    grads = torch.autograd.functional.jacobian(lambda f: loss(f, target), output).reshape(len(output), -1) * terms
    return grads.unsqueeze(2) * grads.unsqueeze(1) / terms


def module_jacobian(module, example):
    """``∂out/∂in`` ``[out, in]`` of one example without a batch."""
    made = jacrev(lambda x: module(x.unsqueeze(0).clone()).squeeze(0))(example)
    return made.reshape(-1, example.numel())
