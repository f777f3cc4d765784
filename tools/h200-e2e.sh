#!/usr/bin/env bash
# On a host with a GPU: `moecheck e2e` with Triton and CUDA kernels in the embedded model, all problems, and, on the CPU
# cores beside it, part of the calibration of its limits. Everything at once; each ends after SECONDS_EACH (default 95).
# Usage: OUT=folder tools/h200-e2e.sh [KERNEL...]
set -uo pipefail
OUT=${OUT:?set OUT to the folder for results}
LIMIT=${SECONDS_EACH:-95}
if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
  export PYTHONPATH=/tmp/site:$PWD
fi
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
kernels=("$@")
[ ${#kernels[@]} -gt 0 ] || kernels=(triton/fused_gate_up triton/fused_shared triton/topk_routing cuda/topk_routing)
run() { # NAME COMMAND...
  local name=$1 start
  shift
  start=$(date +%s.%N)
  timeout "$LIMIT" "$@" >"$OUT/$name.txt" 2>&1
  echo "$name: exit $?, $(awk "BEGIN {printf \"%.1f\", $(date +%s.%N) - $start}") s" >>"$OUT/times.txt"
}
for kernel in "${kernels[@]}"; do
  name=e2e-${kernel//\//-}
  run "$name" python3 -m moecheck e2e --task gsm8k --kernel "$kernel" --out "/tmp/$name" ${E2E_OPTIONS:-} &
done
if [ "${SETS:-0}" -gt 0 ]; then
  CUDA_VISIBLE_DEVICES="" run calibrate python3 tools/calibrate_e2e.py --sets "$SETS" --first "${FIRST:-0}" --bugs 1 \
    $(printf -- '--model %s ' ${MODELS:-tiny-glm4-moe tiny-qwen3-moe}) --jobs "${JOBS:-10}" --seconds $((LIMIT - 8)) --out "$OUT/calibration.jsonl" &
fi
wait
for kernel in "${kernels[@]}"; do
  name=e2e-${kernel//\//-}
  cp "/tmp/$name/latest/e2e.json" "$OUT/$name.json" 2>/dev/null
  cp "/tmp/$name/latest/summary.md" "$OUT/$name.md" 2>/dev/null
done
cat "$OUT/times.txt"
for file in "$OUT"/*.txt; do
  echo "== $file"
  tail -n 22 "$file" | cut -c1-220
done
