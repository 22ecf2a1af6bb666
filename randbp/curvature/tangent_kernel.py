"""The empirical neural tangent kernel of a network, layer by layer."""

from collections.abc import Iterator
from functools import reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.hooks import without_autocast
from ..layers.integers import as_integer
from .jacobian_grams import Pulled, jacobian_gram
from .parameter_uses import Output, Recording, WeightUse, precise, record


def ntk(model: nn.Module, x: Tensor, y: Tensor | None = None, *, trace: bool = False, memory: int = 2**30) -> Tensor:
    """The empirical neural tangent kernel ``Θ[n, m, c, c'] = ⟨∂f_c(x_n)/∂θ, ∂f_c'(y_m)/∂θ⟩``, shape ``[N, M, C, C]``.

    ``θ`` are the parameters that need a gradient, ``C`` is the number of outputs per example. Each output is
    backpropagated once for a block of examples, to the outputs of all layers. What a layer adds is then one tensor
    network: of a convolution with unfolded inputs ``U`` and output gradients ``V``, ``Σ_oo' (V_nᵀ V_m)[o, o']
    (U_nᵀ U_m)[o, o']``. Its plan multiplies in the cheapest order: these Gram matrices one after the other, or
    Jacobians ``V_n U_nᵀ`` of each example first. Nothing is unfolded.

    Layers are convolutions (1- to 3-d, grouped, transposed) and linear layers (also over tokens), with biases, batch
    norms in evaluation mode and other norms, embeddings; by modules or by function calls, used once or more often.

    Args:
        model: Maps ``[N, …]`` to ``[N, C]``; other outputs are flattened to that.
        x: Examples ``[N, …]``.
        y: Other examples ``[M, …]``; by default ``x``, whose kernel is symmetric and computed by halves.
        trace: Whether only ``Σ_c Θ[n, m, c, c]`` is computed, ``[N, M]``, at less cost.
        memory: About how many bytes of layer inputs, output gradients and intermediate products are held at a time.

    Returns:
        The kernel, in single precision at least.

    Raises:
        ValueError: If a parameter is used in another way (frozen ones are left out), if examples are not the first
            dimension of each layer's input or depend on each other (a batch norm in training mode) or on chance, or if
            an argument is wrong.

    Source: A. Jacot et al., Neural tangent kernel: convergence and generalization in neural networks, 2018; R. Novak et
    al., Fast finite width neural tangent kernel, 2022.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
        >>> x = torch.randn(6, 1, 5, 5)
        >>> kernel = ntk(model, x)
        >>> kernel.shape, ntk(model, x, x[:4], trace=True).shape
        (torch.Size([6, 6, 2, 2]), torch.Size([6, 4]))
        >>> torch.allclose(ntk(model, x, trace=True), kernel.diagonal(dim1=2, dim2=3).sum(2), rtol=1e-4)
        True
    """
    for name, examples in {"x": x, **({} if y is None else {"y": y})}.items():
        if not isinstance(examples, Tensor) or not examples.dim() or not len(examples):
            told = f"tensor of shape {tuple(examples.shape)}" if isinstance(examples, Tensor) else f"{examples!r:.60}"
            raise ValueError(f"{name}={told}: expected a tensor of at least one example")
    if y is not None and y.shape[1:] != x.shape[1:]:
        raise ValueError(f"y: examples of shape {tuple(y.shape[1:])}, expected {tuple(x.shape[1:])} as in x")
    if (as_integer(memory) or 0) < 1:
        raise ValueError(f"memory={memory!r}: expected a positive number of bytes")
    first, entries = _tried(model, x[:1])
    size = max(1, memory // (4 * entries * first.element_size()))
    result: Tensor | None = None
    for rows, left in _blocks(model, x, size, first):
        others = [(rows, left)] if y is None else []
        start = rows.stop if y is None else 0
        for columns, right in chain(others, _blocks(model, x if y is None else y, size, None, start)):
            made = _kernel(left, right, trace, memory // 2)
            if result is None:
                result = made.new_empty(len(x), len(x if y is None else y), *made.shape[2:])
            result[rows, columns] = made
            if y is None and columns != rows:
                result[columns, rows] = made.transpose(0, 1) if trace else made.permute(1, 0, 3, 2)
            del right, made  # before the next block is made
    assert result is not None
    return result


_Block = dict[nn.Parameter, Pulled]


def _flat(found: Recording) -> Tensor:
    output = found.output
    if not isinstance(output, Tensor) or not output.dim():
        raise ValueError(f"model: returns a {type(output).__name__}, expected a tensor [N, C]")
    return output.reshape(len(output), -1)


def _tried(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The output ``[1, C]`` of one example, and how many entries it takes; raises if a use of a parameter is missed."""
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not names:
        raise ValueError("model: no parameter needs a gradient")
    found = record(model, x)
    flat = _flat(found)
    if not flat.requires_grad:
        raise ValueError("model: its output depends on no parameter that needs a gradient")
    outputs = list(dict.fromkeys(use.output for use in found.uses))
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)
    inputs: list[Any] = [*(output.edge for output in outputs), *names]
    grads = torch.autograd.grad(flat, inputs, cotangent, allow_unused=True)
    missed = {parameter: grad for parameter, grad in zip(names, grads[len(outputs) :], strict=True) if grad is not None}
    bounds = dict.fromkeys(missed, 0.0)
    by_output = dict(zip(outputs, grads, strict=False))
    for use in found.uses:
        if use.examples != 1:
            raise ValueError(f"model: {names[use.parameter]!r} is used where examples are not the first dimension")
        grad = by_output[use.output]
        if grad is not None:
            with torch.no_grad(), without_autocast(grad):
                seen = use.vjp(precise(grad).unsqueeze(0)).view(use.parameter.shape)
                known = missed[use.parameter]
                missed[use.parameter] = known - seen.to(known) if known is not None else known
            bounds[use.parameter] += float(seen.norm()) + float(grad.norm())
    # What is left of a gradient is rounding, if all uses were seen.
    tolerance = torch.finfo(flat.dtype).eps ** 0.5
    noted = {use.parameter for use in found.uses}
    left = [names[p] for p, rest in missed.items() if p not in noted or not float(rest.norm()) <= tolerance * bounds[p]]
    if left:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        raise ValueError(
            f"model: no rule for a use of {', '.join(map(repr, left[:4]))}{more}: only convolutions, linear layers, "
            "norms and embeddings have one; freeze (requires_grad_(False)) what should be left out"
        )
    made = sum(grad.numel() for grad in by_output.values() if grad is not None)
    taken = sum(use.input.numel() for use in found.uses if isinstance(use, WeightUse))
    return flat.detach(), max(1, taken + (1 + flat.shape[1]) * made)


def _blocks(
    model: nn.Module, x: Tensor, size: int, first: Tensor | None, start: int = 0
) -> Iterator[tuple[slice, _Block]]:
    """Blocks of examples, each backpropagated; the output of the first example is to be ``first``."""
    for begin in range(start, len(x), size):
        part = slice(begin, min(begin + size, len(x)))
        yield part, _backpropagated(record(model, x[part]), part.stop - part.start, None if begin else first)


def _backpropagated(found: Recording, examples: int, first: Tensor | None) -> _Block:
    """Cotangents of all outputs of layers, one for each output of the model."""
    flat = _flat(found)
    if first is not None:
        off, tolerance = float((flat[:1].detach() - first).norm()), torch.finfo(flat.dtype).eps ** 0.4
        if not off <= tolerance * float(first.norm()):
            raise ValueError(
                "model: its output for an example depends on the other examples or on chance: call model.eval(), "
                "or take out what mixes examples"
            )
    outputs = list(dict.fromkeys(use.output for use in found.uses))
    columns: dict[Output, Tensor] = {}
    edges = [output.edge for output in outputs]
    for c in range(flat.shape[1]):
        grads = torch.autograd.grad(flat[:, c].sum(), edges, retain_graph=c + 1 < flat.shape[1], allow_unused=True)
        for output, grad in zip(outputs, grads, strict=True):
            if grad is not None:
                if output not in columns:
                    columns[output] = precise(grad.new_zeros(flat.shape[1], *output.shape))
                columns[output][c] = grad
    block: _Block = {}
    for use in found.uses:
        if use.output in columns:
            if use.examples != examples:
                raise ValueError("model: a parameter is used where examples are not the first dimension")
            known = block.get(use.parameter, Pulled())
            block[use.parameter] = Pulled((*known.uses, use), (*known.cotangents, columns[use.output]))
    return block


def _kernel(left: _Block, right: _Block, trace: bool, memory: int) -> Tensor:
    """The kernel of two blocks, summed over parameters."""
    parts = [(part, right[parameter]) for parameter, part in left.items() if parameter in right]
    with torch.no_grad(), without_autocast(parts[0][0].cotangents[0]):
        return reduce(Tensor.add_, (jacobian_gram(*pair, trace, memory) for pair in parts))
