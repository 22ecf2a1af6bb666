"""Contract a network on tensors through its cached plan."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .network import INDEX_TYPES, TensorNetwork, check_operand
from .planning.plan_cache import cache
from .sampling import check_indices

_CPU = torch.device("cpu")


def contract(net: TensorNetwork, tensors: Mapping[str, Tensor]) -> Tensor:
    """Evaluate a network; see `TensorNetwork.contract`."""
    if net.bound:
        tensors = {**net.bound, **tensors}
    dtype, device = None, _CPU
    given = []
    for slot, shape, is_index in net.takes:
        tensor = tensors.get(slot)
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            raise _complaint(net, tensors)
        if is_index:
            if tensor.dtype not in INDEX_TYPES:
                raise _complaint(net, tensors)
        elif dtype is None:
            dtype, device = tensor.dtype, tensor.device
        elif tensor.dtype != dtype or tensor.device != device:
            raise _mixed(net, tensors)
        given.append(tensor)
    if len(tensors) != len(given):
        raise _complaint(net, tensors)
    program = cache.plan(net, dtype or torch.float32, device).program
    try:
        if device.type != "meta" and torch.is_autocast_enabled(device.type):  # kernels would disagree about data types
            with torch.autocast(device.type, enabled=False):
                return program.run(given)
        return program.run(given)
    except IndexError:
        check_indices(net, tensors)
        raise


def _complaint(net: TensorNetwork, tensors: Mapping[str, Tensor]) -> ValueError:
    """The first thing that is wrong with the operands."""
    try:
        for slot, tensor in tensors.items():
            check_operand(net, slot, tensor)
    except ValueError as error:
        return error
    missing = ", ".join(f"{slot} {shape}" for slot, shape in net.slots.items() if slot not in tensors)
    return ValueError(f"contract: missing {missing}; {net.name} takes {', '.join(net.slots)}")


def _mixed(net: TensorNetwork, tensors: Mapping[str, Tensor]) -> ValueError:
    kinds = ", ".join(
        f"{slot} {tensors[slot].dtype} on {tensors[slot].device}" for slot in net.slots if slot not in net.index_slots
    )
    return ValueError(f"contract: operands of {net.name} must share data type and device, got {kinds}")
