"""The demo: the same prompts drawn and the same questions answered with and without FlashU, from the same seeds."""

from flashu.demo.compare import compare
from flashu.demo.report import write_all
from flashu.demo.result import Result
from flashu.demo.table import summary

__all__ = ["Result", "compare", "summary", "write_all"]
