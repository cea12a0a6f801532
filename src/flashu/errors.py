"""What can go wrong because of something given from outside. Each message says what to do about it."""

from __future__ import annotations

LONGEST = 3000
"""Characters of a message; what is longer quotes something long, and is cut in the middle."""


class FlashUError(ValueError):
    """Base of all errors a caller can mend."""

    def __str__(self) -> str:
        """Names out of files are quoted in messages; what steers a terminal is escaped."""
        text = super().__str__()
        if len(text) > LONGEST:
            text = text[: LONGEST // 2] + " [...] " + text[-LONGEST // 2 :]
        return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


class CheckpointError(FlashUError):
    """A folder, file or hub id that holds no usable model; nothing was loaded."""


class PromptError(FlashUError):
    """A prompt or question that cannot be encoded."""


class ImageError(FlashUError):
    """An image, or pixels, of a kind or size that cannot be used."""


class RecipeError(FlashUError):
    """Settings that are out of range or contradict each other."""


class CalibrationError(FlashUError):
    """Calibration data that is missing or belongs to other weights."""
