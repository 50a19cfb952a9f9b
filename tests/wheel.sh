#!/usr/bin/env bash
# Builds the wheel and uses it in a clean environment, with the core dependencies only.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --quiet --wheel --outdir "$work/dist" "$root" 2>&1 | grep -v '^\*' || true
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$work"/dist/*.whl
cd "$work"
stepwell="$work/venv/bin/stepwell"
"$stepwell" --version
"$stepwell" train ekd --data digits --net resnet20 --depths 8 --epochs 2 --batch-size 256 --out run
"$stepwell" eval run
"$stepwell" export run --format safetensors
"$stepwell" report run
test -s run/report.html
"$work/venv/bin/python" - <<'PY'
import importlib.util as find, stepwell
net = stepwell.load("run/net.safetensors")
assert list(net.depths) == ["8", "20"], net.depths
assert not find.find_spec("onnxruntime"), "the environment is not clean"
PY
# Without the extra, exporting to ONNX says which one to install.
if "$stepwell" export run 2> message; then echo "export needs onnx and did not say so"; exit 1; fi
grep -q "pip install 'stepwell\[onnx\]'" message
echo "the wheel trains, evaluates, exports and reports in a clean environment"
