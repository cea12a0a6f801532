"""Training: exact savings, UniMoD, a trainer, drafts, and the scenes models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashu.training.exact import Prepared, Savings, prepare
    from flashu.training.mod import RoutedTraining, Routers, UniMoDConfig
    from flashu.training.patch import apply_unimod, remove_unimod

_LATER = {
    "Prepared": "exact", "Savings": "exact", "prepare": "exact", "Routers": "mod", "RoutedTraining": "mod",
    "UniMoDConfig": "mod", "apply_unimod": "patch", "remove_unimod": "patch",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "Prepared", "RoutedTraining", "Routers", "Savings", "UniMoDConfig", "apply_unimod", "prepare", "remove_unimod",
]  # fmt: skip
