"""The scenes are data: they import nothing of flashu but its errors, and no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import flashu.scenes

FILES = sorted(Path(str(flashu.scenes.__path__[0])).glob("*.py"))
MODULES = [path.stem for path in FILES if path.stem != "__init__"]


def test_scenes_import_nothing_of_flashu_but_errors() -> None:
    assert {"world", "captions", "questions", "sampler", "split", "detector", "benchmark", "tokenizer", "edits"} == set(
        MODULES
    )
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, path
                names = [node.module or ""] if node.level == 0 else []
            ours = [name for name in names if name.split(".")[0] == "flashu"]
            assert not set(ours) - {"flashu.errors"}, path


def test_scenes_need_no_torch() -> None:
    code = (
        f"import sys\nfor name in {MODULES}:\n    __import__('flashu.scenes.' + name)\n"
        "slow = {'torch', 'transformers', 'safetensors', 'PIL'} & sys.modules.keys()\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
