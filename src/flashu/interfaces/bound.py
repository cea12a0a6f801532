"""Methods of one instance of an original authors' class, answered by something else."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from flashu.errors import FlashUError


class BoundMethods:
    """Calls on one instance, which a subclass answers by methods named as in ``METHODS``.

    ``before``: what the instance itself was bound to under these names.
    """

    METHODS: ClassVar[tuple[str, ...]]

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        names = (*self.METHODS, "__getstate__")
        self.before = {name: vars(module)[name] for name in names if name in vars(module)}

    def bind(self) -> None:
        for name in self.METHODS:
            vars(self.module)[name] = getattr(self, name)
        vars(self.module)["__getstate__"] = self.plain_state

    def plain_state(self) -> Any:
        """The instance's state without these methods: copies and pickles are unpatched."""
        own = getattr(type(self.module), "__getstate__", None)
        state = own(self.module) if own not in (None, getattr(object, "__getstate__", None)) else vars(self.module)
        if not isinstance(state, dict):
            return state
        return {k: v for k, v in state.items() if getattr(v, "__self__", None) is not self} | self.before

    def original(self, name: str) -> Any:
        """The method that the instance would have without us."""
        if name in self.before:
            return self.before[name]
        if not hasattr(type(self.module), name):
            raise FlashUError(f"{type(self.module).__name__} has no {name}, and this call needs the original")
        return getattr(type(self.module), name).__get__(self.module)


def unbind(module: nn.Module) -> None:
    """Leave an instance as it was before `BoundMethods.bind`."""
    bound: BoundMethods = vars(module)["__getstate__"].__self__
    for name in (*bound.METHODS, "__getstate__"):
        del vars(module)[name]
    vars(module).update(bound.before)
