#!/usr/bin/env bash
# On a host with a GPU: what `moecheck kernels` does there beside judging values: graphs, streams, launched kernels,
# sanitizers, and a layer in full size. Usage: OUT=folder tools/h200-device-checks.sh [KERNEL...]
set -uo pipefail
[ -d /tmp/site/pebble ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD
kernels=("${@:-moecheck.kernels.triton.experts:fused_gate_up}")
options=()
for kernel in "${kernels[@]}"; do options+=(--kernel "$kernel"); done
(
  timeout "${LIMIT:-70}" python3 -m moecheck kernels "${options[@]}" --sanitizer memcheck --profile quick --out /tmp/memcheck >"$OUT/memcheck.txt" 2>&1
  echo "memcheck: exit $?"
  tail -8 "$OUT/memcheck.txt"
) &
timeout "${LIMIT:-70}" python3 -m moecheck kernels "${options[@]}" --profile quick --device-trials --out /tmp/checks >"$OUT/checks.txt" 2>&1
echo "checks: exit $?"
tail -12 "$OUT/checks.txt"
cp /tmp/checks/latest/findings.jsonl "$OUT/checks.jsonl"
grep -hoE '"(launched|graph_replay|side_stream|busy_default_stream)": "[^"]*"' /tmp/checks/latest/findings.jsonl | sort | uniq -c | head -20
wait
cp /tmp/memcheck/latest/findings.jsonl "$OUT/memcheck.jsonl"
