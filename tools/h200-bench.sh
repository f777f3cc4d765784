#!/usr/bin/env bash
# On a host with a GPU: kernels against each other on the layers of published models.
# Usage: OUT=folder tools/h200-bench.sh [options of moecheck bench]
set -uo pipefail
[ -d /tmp/site/pebble ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD
start=$(date +%s)
timeout "${LIMIT:-500}" python3 -m moecheck bench "$@" --out /tmp/bench >"$OUT/bench.txt" 2>"$OUT/bench.log"
echo "moecheck bench $*: exit $?, $(($(date +%s) - start)) s"
cp /tmp/bench/latest/{bench.json,bench.md,environment.json} "$OUT/" 2>/dev/null
tail -60 "$OUT/bench.txt"
tail -5 "$OUT/bench.log"
