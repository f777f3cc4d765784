#!/usr/bin/env bash
# On a host with a GPU: a DeepSeek-V3 layer in full size, 4,096 tokens, through kernels, with the seconds that it takes.
# Usage: OUT=folder tools/h200-full-size.sh KERNEL... (module:function starts fastest: nothing else is imported)
set -uo pipefail
[ -d /tmp/site/pebble ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD
for kernel in "$@"; do
  name=${kernel//[\/:]/-} start=$(date +%s)
  timeout "${LIMIT:-100}" python3 -m moecheck kernels --kernel "$kernel" --model deepseek-v3 --tokens 4096 \
    --timeout 60 --out "/tmp/reports/$name" >"$OUT/full-size-$name.txt" 2>&1
  echo "$kernel: exit $?, $(($(date +%s) - start)) s"
  tail -25 "$OUT/full-size-$name.txt"
  cp "/tmp/reports/$name/latest/findings.jsonl" "$OUT/full-size-$name.jsonl" 2>/dev/null
done
