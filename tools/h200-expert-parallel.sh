#!/usr/bin/env bash
# On a host with two GPUs or more: expert parallelism in JAX and by torch.distributed with NCCL over two of them, layers
# of Qwen3-30B and Grok-2 in full size, and grouped GEMMs on one. Wheels of .whl and .whl-ep (absl-py) are carried.
# Usage: OUT=folder tools/h200-expert-parallel.sh
set -uo pipefail
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl .whl-ep/*.whl
export PYTHONPATH=/tmp/site:$PWD XLA_PYTHON_CLIENT_PREALLOCATE=false
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
limit=${LIMIT:-165}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$OUT/gpus.txt"

# step NAME ARGUMENTS...: one run of moecheck in the background, its output and findings under $OUT.
step() {
  local name=$1 start
  shift
  (
    start=$(date +%s)
    timeout "$limit" python3 -m moecheck "$@" --out "/tmp/reports/$name" >"$OUT/$name.txt" 2>&1
    echo "exit $?, $(($(date +%s) - start)) s" >>"$OUT/$name.txt"
    cp "/tmp/reports/$name/latest/findings.jsonl" "$OUT/$name.jsonl" 2>/dev/null
  ) &
}

layers=(--kernel torch/distributed --kernel jax/epmoe --kernel jax/epmoe_psum --jobs 3 --timeout 100)
step qwen3-30b kernels "${layers[@]}" --model qwen3-30b-a3b --tokens 16,256
step grok-2 kernels "${layers[@]}" --model grok-2 --tokens 16,256
step layers-small kernels "${layers[@]}" --profile default --examples 4
step gemms kernels --kernel jax/hopper_ragged_dot --kernel jax/ragged_dot_gemm --jobs 2 --timeout 60
for kernel in jax/hopper_ragged_dot jax/ragged_dot_gemm; do
  name=gemm-qwen3-30b-${kernel#jax/}
  (
    timeout "$limit" python3 -m moecheck replay --kernel "$kernel" --timeout 100 tools/h200-expert-parallel-gemm.json \
      >"$OUT/$name.txt" 2>&1
    echo "exit $?" >>"$OUT/$name.txt"
  ) &
done
wait
tail -n 22 "$OUT"/*.txt
