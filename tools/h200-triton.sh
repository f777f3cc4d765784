#!/usr/bin/env bash
# On a host with a GPU: tune the Triton experts, time them, check them, check a layer in full size, in the order given.
# Usage: OUT=folder tools/h200-triton.sh tune bench check
set -uo pipefail
[ -d /tmp/site/pebble ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD
for part in "$@"; do
  case $part in
    tune)
      for model in ${MODELS:-mixtral-8x7b qwen3-30b-a3b deepseek-v3-tp8}; do
        timeout "${TUNE_SECONDS:-170}" python3 -m moecheck tune "${KERNEL:-triton/fused_gate_up}" --model "$model" \
          --tokens "${TOKENS:-16,256,4096}" --tries "${TRIES:-40}" --out "$OUT/tuned.json" >"$OUT/triton-tune-$model.txt" 2>&1
        echo "tune $model: exit $?"
        grep " tokens: " "$OUT/triton-tune-$model.txt" | cut -c1-400
      done
      [ -s "$OUT/tuned.json" ] && export MOECHECK_TUNED=$OUT/tuned.json
      ;;
    bench)
      timeout 120 python3 tools/bench_triton.py ${SHAPES:+--shapes $SHAPES} >"$OUT/triton-bench.txt" 2>&1
      echo "bench: exit $?"
      tail -40 "$OUT/triton-bench.txt"
      ;;
    check)
      names=${NAMES:-$(grep -ho 'name="triton/[a-z0-9_]*"' kernels/triton/*.py | cut -d'"' -f2 | sort -u)}
      timeout "${CHECK_SECONDS:-200}" python3 -m moecheck kernels $(printf -- '--kernel %s ' $names) --profile "${PROFILE:-default}" \
        --timeout 60 --jobs 12 --out /tmp/triton >"$OUT/triton-check.txt" 2>&1
      echo "check: exit $?"
      cp /tmp/triton/latest/{summary.json,findings.jsonl} "$OUT/" 2>/dev/null
      tail -60 "$OUT/triton-check.txt"
      ;;
    full)
      for model in ${MODELS:-mixtral-8x7b qwen3-30b-a3b}; do
        start=$(date +%s)
        timeout "${FULL_SECONDS:-60}" python3 -m moecheck kernels --kernel moecheck.kernels.triton.experts:fused_gate_up \
          --model "$model" --tokens 16,256,4096 --dtype bf16 --timeout 60 --out /tmp/full >"$OUT/triton-full-$model.txt" 2>&1
        echo "full $model: exit $?, $(($(date +%s) - start)) s"
        tail -12 "$OUT/triton-full-$model.txt"
      done
      ;;
  esac
done
