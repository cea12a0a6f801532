"""`flashu train` and `flashu study`: what they say of what they cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashu.cli.main import app


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train"], 2, "give --config FILE"),
        (["train", "--config", "nowhere.yaml"], 2, "does not exist"),
        (["train", "--config", "list.yaml"], 1, "settings by name"),
        (["train", "--config", "short.yaml"], 1, "the settings lack output, data, rows"),
        (["study", "unimod", "--model", "scenes", "-o", "out", "--arms", "unimod"], 1, "put it among the arms"),
        (["study", "layers", "--dtype", "int8"], 1, "bfloat16 or float32"),
    ],
)
def test_errors(
    words: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "short.yaml").write_text("model: scenes\n")
    with pytest.raises(SystemExit) as end:
        app(words)
    assert end.value.code == code
    assert says in capfd.readouterr().err
