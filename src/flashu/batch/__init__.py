"""Large offline jobs: images of many prompts as WebDataset shards, here or on the workers of a Ray cluster."""

from flashu.batch.job import Item, Report, generate

__all__ = ["Item", "Report", "generate"]
