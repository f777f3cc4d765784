#!/usr/bin/env bash
# On a host with a GPU: other projects' kernels, packed by tools/h200-third-party-pack.py into .whl-third-party. Parts, in
# the order given: `import` says what can be imported, `collect` keeps the outputs of many shapes for
# tools/h200-third-party.py identify, `check` runs moecheck kernels, `bench` times experts against ours.
# Usage: OUT=folder tools/h200-third-party.sh PART...
set -uo pipefail
if [ ! -f /tmp/site/sitecustomize.py ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl .whl-third-party/*.whl
  mkdir -p /tmp/vllm && tar xJf .whl-third-party/vllm.tar.xz -C /tmp/vllm
  cp tools/h200_third_party_stubs.py /tmp/site/sitecustomize.py
fi
export PYTHONPATH=/tmp/site:/tmp/vllm:$PWD LIGER_FUSED_MOE_AUTOTUNE=${LIGER_FUSED_MOE_AUTOTUNE:-0} HF_HUB_OFFLINE=1
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} DG_JIT_CACHE_DIR=/tmp/deep_gemm VLLM_NO_USAGE_STATS=1
for part in "$@"; do
  case $part in
    import)
      for _ in 1 2 3 4 5 6; do
        missing=$(python3 -W ignore -c "import vllm.model_executor.layers.fused_moe.fused_moe" 2>&1 |
          sed -n "s/^ModuleNotFoundError: No module named '\([^'.]*\).*/\1/p" | tail -1)
        [ -z "$missing" ] && break
        echo "vLLM imports $missing, which is not installed: a stand-in from here on"
        export STAND_INS="${STAND_INS:-} $missing"
      done
      for module in liger_experts moe_ops_rows vllm_experts vllm_fp8_experts vllm_modular_experts vllm_routers vllm_rows; do
        (start=$(date +%s); python3 -W ignore -c "import moecheck.kernels.third_party.$module" 2>&1 | tail -6 | cut -c1-600
         echo "$module: imported in $(($(date +%s) - start)) s") &
      done
      wait
      ;;
    collect)
      timeout 180 python3 tools/h200-third-party.py collect "$OUT/outputs.npz" --seconds "${COLLECT_SECONDS:-100}" ${ONLY:+--only $ONLY} \
        >"$OUT/collect.txt" 2>&1
      echo "collect: exit $?"
      tail -40 "$OUT/collect.txt" | cut -c1-300
      ;;
    check)
      names=${NAMES:-$(python3 tools/h200-third-party.py names)}
      timeout "${CHECK_SECONDS:-150}" python3 -m moecheck kernels $(printf -- '--kernel %s ' $names) --profile "${PROFILE:-default}" \
        --timeout 60 --jobs "${JOBS:-12}" --out /tmp/reports >"$OUT/check.txt" 2>&1
      echo "check: exit $?"
      cp "$(ls -td /tmp/reports/2*/ | head -1)"/{summary.json,summary.md,findings.jsonl} "$OUT/" 2>/dev/null
      tail -70 "$OUT/check.txt" | cut -c1-200
      ;;
    bench)
      timeout "${BENCH_SECONDS:-150}" python3 -m moecheck bench --kernel triton/fused_gate_up --kernel vllm/fused_experts \
        --kernel transformers/mixtral_grouped_mm --kernel liger/fused_moe --model qwen3-30b-a3b --model deepseek-v3-tp8 \
        --model mixtral-8x7b --tokens 16,256,4096 --sample 2 --seconds 0.2 --out /tmp/bench >"$OUT/bench.txt" 2>&1
      echo "bench: exit $?"
      cp /tmp/bench/latest/bench.{json,md} "$OUT/"
      cut -c1-160 "$OUT/bench.md"
      ;;
  esac
done
