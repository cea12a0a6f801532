"""The official text-to-image benchmarks: images in the folders their scorers read, resumable and sharded."""

from flashu.eval.benchmarks import DPG, Benchmark, GenEval, Item
from flashu.eval.evaluate import Summary, evaluate
from flashu.eval.shard import Shard

__all__ = ["DPG", "Benchmark", "GenEval", "Item", "Shard", "Summary", "evaluate"]
