#!/usr/bin/env bash
# Trains the embedded models, each on a GPU of its own (one after the other where there are fewer), in MINUTES each
# (default 6), and leaves their folders in OUT. Whatever a time limit cuts off, OUT has the best weights so far and the log.
# Usage: OUT=models tools/h200-train.sh tiny-glm4-moe tiny-qwen3-moe
set -u
OUT=${OUT:?set OUT to the folder for models and logs}
MINUTES=${MINUTES:-6}
if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
  export PYTHONPATH=/tmp/site:$PWD
fi
export TOKENIZERS_PARALLELISM=false
gpus=$(nvidia-smi --list-gpus | wc -l)
workers=$(( $(nproc) / gpus - 2 ))
train() { # NAME GPU
  mkdir -p "$OUT/$1"
  # The training ends by itself; TERM, a minute and a half later, makes it write what it has; KILL comes half a minute after.
  CUDA_VISIBLE_DEVICES=$2 timeout --kill-after=30 "$(awk "BEGIN {print int($MINUTES * 60 + 90)}")" \
    python3 -m moecheck.evals.train "$1" --out "$OUT/$1" --minutes "$MINUTES" --workers "$workers" 2>&1 |
    tee "$OUT/$1.log"
}
gpu=0
for name in "$@"; do
  train "$name" "$gpu" &
  gpu=$(( gpu + 1 ))
  if [ "$gpu" -ge "$gpus" ]; then
    wait
    gpu=0
  fi
done
wait
