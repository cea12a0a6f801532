"""What calibration is gathered on is said where it is not like what the model is for."""

from __future__ import annotations

import dataclasses
import logging

import pytest

import flashu


def test_toy_samples_for_a_real_model_are_a_warning_that_says_what_to_give(
    tiny: flashu.ShowO2, caplog: pytest.LogCaptureFixture
) -> None:
    processor = tiny.processor
    assert processor is not None
    # The embedded worlds are 64 and 128 px wide: at another size the model is not one of theirs.
    other = dataclasses.replace(processor, defaults=dataclasses.replace(processor.defaults, height=96, width=96))
    for used, warned in ((processor, False), (other, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="flashu"):
            flashu.Engine(tiny, used).calibrate("understanding")
        assert any("pairs=" in record.getMessage() for record in caplog.records) is warned


def test_given_samples_need_no_warning(tiny: flashu.ShowO2, caplog: pytest.LogCaptureFixture) -> None:
    engine = flashu.Engine(tiny, tiny.processor)
    image = engine.generate("w1", steps=2).images[0]
    with caplog.at_level(logging.WARNING, logger="flashu"):
        known = engine.calibrate("understanding", pairs=[(image, "w2 w3")])
    assert not caplog.records
    assert known.made_from["understanding"]["source"] == "given"
