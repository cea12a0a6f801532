"""The demo: the same prompts drawn and the same questions answered with and without FlashU, from the same seeds."""

from flashu.demo.compare import compare
from flashu.demo.result import Answered, Drawn, Result, Side
from flashu.demo.table import summary
from flashu.demo.write import write_all

__all__ = ["Answered", "Drawn", "Result", "Side", "compare", "summary", "write_all"]
