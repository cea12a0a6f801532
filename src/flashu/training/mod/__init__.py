"""UniMoD (arXiv 2502.06474): each task of a unified transformer has its own routers, by which tokens bypass layers."""

from flashu.training.mod.arank import ARank, arank, select_layers
from flashu.training.mod.config import PRESETS, UniModConfig, preset, randomly
from flashu.training.mod.method import RoutedTraining
from flashu.training.mod.routers import Routers

__all__ = [
    "PRESETS", "ARank", "RoutedTraining", "Routers", "UniModConfig", "arank", "preset", "randomly",
    "select_layers",
]  # fmt: skip
