#!/usr/bin/env bash
# Calibration on the host's cores (no GPU visible) and, meanwhile, all kernels on the GPU. Usage: OUT=folder tools/h200-calibrate.sh CASES
set -uo pipefail
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD
(CUDA_VISIBLE_DEVICES="" JAX_PLATFORMS=cpu timeout 560 python3 tools/calibrate.py --cases "$1" --jobs 12 --out "$OUT/calibration" >"$OUT/calibration.log" 2>&1) &
[ -n "${SKIP_GPU:-}" ] || timeout 300 python3 -m moecheck kernels --tol 1e-2 --timeout 60 --jobs 3 --out /tmp/reports >"$OUT/kernels.txt" 2>&1
echo "kernels: exit $?"
cp /tmp/reports/latest/{summary.json,findings.jsonl,environment.json} "$OUT/" 2>/dev/null
wait
tail -70 "$OUT/calibration.log"
