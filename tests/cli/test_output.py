"""What commands do besides their work."""

from __future__ import annotations

import logging

import pytest

from flashu.cli.output import without_warnings


def test_warnings_come_back_after_a_study_however_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("flashu")

    def study() -> None:
        with without_warnings():
            log.warning("kept quiet")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study()
    log.warning("heard again")
    assert caplog.messages == ["heard again"]
