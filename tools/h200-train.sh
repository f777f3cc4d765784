#!/usr/bin/env bash
# Trains the embedded models on one GPU, each in MINUTES (default 6), and leaves their folders in OUT.
# Whatever a time limit cuts off, OUT has the best weights so far and the log.
# Usage: OUT=models tools/h200-train.sh tiny-glm4-moe tiny-qwen3-moe
set -u
OUT=${OUT:?set OUT to the folder for models and logs}
MINUTES=${MINUTES:-6}
if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
  export PYTHONPATH=/tmp/site:$PWD
fi
export TOKENIZERS_PARALLELISM=false
for name in "$@"; do
  mkdir -p "$OUT/$name"
  # The training ends by itself; TERM, a minute and a half later, makes it write what it has; KILL comes a minute after.
  timeout --kill-after=60 "$(awk "BEGIN {print int($MINUTES * 60 + 90)}")" \
    python3 -m moecheck.evals.train "$name" --out "$OUT/$name" --minutes "$MINUTES" 2>&1 | tee "$OUT/$name.log"
done
