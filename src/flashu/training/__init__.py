"""Training: exact savings, UniMoD, a trainer, drafts, and the scenes models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashu.training.exact import Prepared, Savings
    from flashu.training.mod import RoutedTraining, Routers, UniModConfig
    from flashu.training.patch import apply_unimod, prepare, remove_unimod

_LATER = {
    "Prepared": "exact", "Savings": "exact", "prepare": "patch", "Routers": "mod", "RoutedTraining": "mod",
    "UniModConfig": "mod", "apply_unimod": "patch", "remove_unimod": "patch",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "Prepared", "RoutedTraining", "Routers", "Savings", "UniModConfig", "apply_unimod", "prepare", "remove_unimod",
]  # fmt: skip
