#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment, and uses it outside of the repository.
#   tests/package.sh newest|oldest
# "oldest": of every dependency the version that pyproject.toml names as its least.
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:-newest}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}

"$python" -m venv "$place/venv"
run="$place/venv/bin/python"
"$run" -m pip install --quiet --upgrade pip build
"$run" -m build --quiet --wheel --outdir "$place/dist" .

if [ "$which" = oldest ]; then
  "$run" - > "$place/constraints.txt" <<'PY'
import pathlib, re
text = pathlib.Path("pyproject.toml").read_text()
listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.S | re.M)[1]
print("\n".join(f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', listed)))
PY
  "$run" -m pip install --quiet --constraint "$place/constraints.txt" "$place"/dist/*.whl
else
  "$run" -m pip install --quiet "${TORCH:-torch}"
  "$run" -m pip install --quiet "$place"/dist/*.whl
fi

cd "$place"
export PYTHONPATH= OMP_NUM_THREADS=1
"$run" -m pip check
venv/bin/flashu --version
venv/bin/flashu models --json > models.json
venv/bin/flashu generate "a red circle" --steps 4 --preset paper -o circle.png
venv/bin/flashu ask circle.png "what colour is the circle?"
for model in scenes-bagel scenes-showo scenes-emu3; do
  venv/bin/flashu generate "a red circle" --model "$model" -o "$model.png"
done
"$run" -c 'import flashu, pathlib; assert pathlib.Path(flashu.__file__).with_name("py.typed").is_file()'
echo "the wheel works with the $which dependencies"
