#!/usr/bin/env bash
# On a host with a GPU: cost of sigma and the default profile on two of its cores, then calibration on the others (no GPU
# visible), and meanwhile all kernels on the GPU; then what the checks see and what the diagnosis names.
# Usage: OUT=folder tools/h200-calibrate.sh CASES
set -uo pipefail
[ -d /tmp/site/pebble ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD
cpu() { CUDA_VISIBLE_DEVICES="" JAX_PLATFORMS=cpu "$@"; }
cpu taskset -c 2 python3 -W ignore tools/bench_estimate.py | tee "$OUT/bench_estimate.txt"
cpu taskset -c 0,1 python3 -m moecheck kernels --tol 1e-2 --jobs 2 --out /tmp/two >"$OUT/two-cores.txt" 2>&1
tail -4 "$OUT/two-cores.txt"
(cpu timeout 300 python3 tools/calibrate.py --cases "$1" --jobs 12 --out "$OUT" >"$OUT/calibration.log" 2>&1) &
timeout 300 python3 -m moecheck kernels --tol 1e-2 --timeout 60 --jobs 4 --out /tmp/reports >"$OUT/kernels.txt" 2>&1
echo "kernels on the GPU: exit $?"
cp /tmp/reports/latest/{summary.json,summary.md,findings.jsonl,environment.json} "$OUT/" 2>/dev/null
wait
cpu timeout 240 python3 tools/measure_detection.py --jobs 14 >"$OUT/detection.txt" 2>&1
tail -20 "$OUT/detection.txt"
cpu timeout 240 python3 tools/measure_diagnosis.py >"$OUT/diagnosis.txt" 2>&1
tail -30 "$OUT/diagnosis.txt"
tail -45 "$OUT/calibration.log"
tail -30 "$OUT/kernels.txt"
