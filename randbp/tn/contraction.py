"""Contract a network on tensors through its cached plan."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .network import INDEX_TYPES, Network, check_operands
from .planning.path import Optimize
from .planning.plan import Plan
from .planning.plan_cache import cache
from .sampling import check_indices

_CPU = torch.device("cpu")


def contract(
    net: Network, operands: Mapping[str, Tensor] | None = None, /, *, optimize: Optimize = None, **tensors: Tensor
) -> Tensor:
    """Evaluate the network on tensors in PyTorch's layouts.

    Args:
        net: The network.
        operands: Slot to tensor, for slot names that are not identifiers.
        optimize: Search for the order, as in `plan`.
        **tensors: Slot to tensor.

    Returns:
        The result, of shape `output_shape`, with the operands' data type and device.

    Raises:
        ValueError: For unknown or missing slots and wrong shapes, data types or devices.
    """
    if operands is not None:
        if not isinstance(operands, Mapping):
            kind, slots = type(operands).__name__, ", ".join(net.slots)
            raise ValueError(f"operands={kind}: expected a mapping from slots, or keywords; {net.name} takes {slots}")
        tensors = {**operands, **tensors}
    if net.bound:
        tensors = {**net.bound, **tensors}
    dtype, device = None, _CPU
    given = []
    for slot, shape, is_index in net.takes:
        tensor = tensors.get(slot)
        if not isinstance(tensor, Tensor) or tensor.shape != shape or (is_index and tensor.dtype not in INDEX_TYPES):
            break
        if dtype is None and not is_index:
            dtype, device = tensor.dtype, tensor.device
        elif not is_index and (tensor.dtype != dtype or tensor.device != device):
            raise _mixed(net, tensors)
        given.append(tensor)
    if not len(given) == len(tensors) == len(net.takes):
        check_operands(net, tensors, "contract")
    program = cache.plan(net, dtype or torch.float32, device, optimize).program
    try:
        if device.type != "meta" and torch.is_autocast_enabled(device.type):  # kernels would disagree about data types
            with torch.autocast(device.type, enabled=False):
                return program.run(given)
        return program.run(given)
    except IndexError:
        check_indices(net, tensors)
        raise


def plan(
    net: Network,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    optimize: Optimize = None,
) -> Plan:
    """The contraction plan, computed or taken from the cache; print it to read it.

    Args:
        net: The network.
        dtype: Data type of the operands.
        device: Their device.
        optimize: What orders the tensors: a strategy of opt_einsum by name (``"optimal"``, ``"dp"``, ``"greedy"``,
            ``"auto"``, …) or an object with the interface of its ``PathOptimizer``, such as cotengra's. By default, the
            order of up to nine tensors and patterns is optimal, and ``"auto"`` orders larger networks.

    Raises:
        ValueError: If ``dtype`` is not a ``torch.dtype``, or there is no such strategy.

    Example:
        >>> from randbp import tn
        >>> net = tn.kfac_reduce(tn.ConvSpec((5, 3, 8, 8), 4, 3))
        >>> net.plan(optimize="greedy").multiplications == net.plan().multiplications
        True
    """
    if optimize is not None and not isinstance(optimize, str) and not callable(optimize):
        raise ValueError(f"optimize={optimize!r:.60}: expected a strategy of opt_einsum or an optimizer")
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype={dtype!r}: expected a torch.dtype such as torch.float32")
    return cache.plan(net, dtype, torch.device(device), optimize)


def _mixed(net: Network, tensors: Mapping[str, Tensor]) -> ValueError:
    kinds = ", ".join(
        f"{slot} {tensors[slot].dtype} on {tensors[slot].device}" for slot in net.slots if slot not in net.index_slots
    )
    return ValueError(f"contract: operands of {net.name} must share data type and device, got {kinds}")
