"""Swap the class of an existing module, and restore it: models change in place and stay the same objects."""

import copyreg
from typing import Any, ClassVar

from torch import nn


class Reclassed:
    """Mixed in before a module's own class as long as the module behaves differently.

    An instance stays one of its own class. Copies and pickles are reclassed, too.
    """

    prefix: ClassVar[str]  # start of the names of the classes that are made

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made at run time, so copies and pickles say how to make it again.
        reduced: Any = super().__reduce_ex__(protocol)
        made, arguments, *rest = reduced
        if made is copyreg.__newobj__:  # type: ignore[attr-defined]
            mixin, own = next(_MADE[kind] for kind in type(self).__mro__ if kind in _MADE)
            return (_new, (mixin, own, *arguments[1:]), *rest)
        return reduced


_CLASSES: dict[tuple[type[Reclassed], type], type] = {}
"""The classes made so far, by mixin and own class."""

_MADE: dict[type, tuple[type[Reclassed], type]] = {}
"""Mixin and own class, by the class made of them."""


def _made(mixin: type[Reclassed], own: type) -> type:
    if (mixin, own) not in _CLASSES:
        made = type(f"{mixin.prefix}{own.__name__}", (mixin, own), {"__module__": own.__module__})
        made = _CLASSES.setdefault((mixin, own), made)
        _MADE[made] = mixin, own
    return _CLASSES[mixin, own]


def _new(mixin: type[Reclassed], own: type, *arguments: Any) -> Any:
    made = _made(mixin, own)
    return made.__new__(made, *arguments)


def reclass(module: nn.Module, mixin: type[Reclassed]) -> None:
    """Mix a class into that of a module, in place.

    Example:
        >>> class Loud(Reclassed):
        ...     prefix = "Loud"
        ...     def extra_repr(self):
        ...         return super().extra_repr() + "!"
        >>> layer = nn.Linear(1, 2)
        >>> reclass(layer, Loud)
        >>> layer, isinstance(layer, nn.Linear), own_class(layer)
        (LoudLinear(in_features=1, out_features=2, bias=True!), True, <class 'torch.nn.modules.linear.Linear'>)
        >>> restore(layer)
        >>> layer
        Linear(in_features=1, out_features=2, bias=True)
    """
    own: Any = type(module)
    module.__class__ = _made(mixin, own)


def own_class(module: nn.Module) -> type[nn.Module]:
    """A module's class before it was reclassed."""
    kind = type(module)
    return _MADE[kind][1] if kind in _MADE else kind


def is_reclassed(module: nn.Module, mixin: type[Reclassed]) -> bool:
    """Whether :func:`reclass` made a module's present class with this mixin."""
    return type(module) in _MADE and _MADE[type(module)][0] is mixin


def restore(module: nn.Module) -> None:
    """Undo :func:`reclass`, or raise ``RuntimeError`` if something else has changed the class since."""
    if type(module) not in _MADE:
        raise RuntimeError(
            f"{type(module).__name__}: its class was changed after randomize(); undo that change before remove()"
        )
    module.__class__ = own_class(module)
