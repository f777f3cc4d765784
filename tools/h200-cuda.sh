#!/usr/bin/env bash
# On a host with a GPU: builds the CUDA C++ kernels, judges them, runs them under compute-sanitizer, kills their mutants,
# and times them.
# Usage: OUT=folder tools/h200-cuda.sh [build] [kernels] [calls] [sanitizer] [mutants] [bench]   (all of them if none)
set -uo pipefail
[ -d /tmp/site/pebble ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD PYTHONUNBUFFERED=1 XDG_CACHE_HOME=${XDG_CACHE_HOME:-/tmp/cache}
steps=${*:-build kernels calls sanitizer mutants bench}
has() { [[ " $steps " == *" $1 "* ]]; }

if has build; then
    start=$(date +%s)
    timeout 200 python3 -c 'from moecheck.kernels.cuda._library import UNAVAILABLE; print("kernels:", UNAVAILABLE or "built")'
    echo "build: $(($(date +%s) - start)) s"
fi
if has kernels; then
    (
        start=$(date +%s)
        names=$(sed -n 's/.*name="\(cuda\/[a-z_]*\)".*/--kernel \1/p' kernels/cuda/*.py)
        # shellcheck disable=SC2086  # one word each
        timeout 240 python3 -m moecheck kernels $names --timeout 60 --jobs 6 --out /tmp/cuda-report >"$OUT/cuda-kernels.txt" 2>&1
        echo "kernels: exit $? after $(($(date +%s) - start)) s"
        cp /tmp/cuda-report/latest/summary.md "$OUT/cuda-summary.md"
        tail -40 "$OUT/cuda-kernels.txt"
    ) &
fi
if has calls; then
    (
        timeout 90 python3 tools/cuda_small_calls.py --graphs >/tmp/cuda-calls.txt 2>&1
        echo "calls and graph replays: exit $?, $(grep -c '^ok' /tmp/cuda-calls.txt) right"
        grep -v '^ok' /tmp/cuda-calls.txt | tail -20
    ) &
fi
if has sanitizer; then
    for tool in memcheck racecheck initcheck synccheck; do
        (
            narrow=$([ $tool = initcheck ] && echo --narrow) # why: see the tool
            # shellcheck disable=SC2086  # one word or none
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 100 compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 3 \
                python3 tools/cuda_small_calls.py $narrow >/tmp/cuda-$tool.txt 2>&1
            echo "compute-sanitizer $tool: exit $?, $(grep -c '^ok' /tmp/cuda-$tool.txt) calls right," \
                "$(grep 'SUMMARY' /tmp/cuda-$tool.txt | tail -1)" | tee -a "$OUT/cuda-sanitizer.txt"
            grep -v '^ok' /tmp/cuda-$tool.txt | cut -c1-160 | head -40 >"$OUT/cuda-$tool.txt"
        ) &
    done
fi
if has mutants; then
    (
        timeout 240 python3 tools/cuda_mutants.py --jobs "${JOBS:-14}" >"$OUT/cuda-mutants.txt" 2>&1
        echo "mutants: exit $?"
        cat "$OUT/cuda-mutants.txt"
    ) &
fi
wait # times are taken with the machine to itself
if has bench; then
    timeout 120 python3 tools/bench_cuda.py >"$OUT/cuda-bench.txt" 2>&1
    echo "bench: exit $?"
    cat "$OUT/cuda-bench.txt"
fi
