#!/usr/bin/env bash
# One night, for any CI system or cron: sets up .venv where it is missing, runs moecheck nightly, and ends with its exit
# code. Usage: tools/nightly.sh [CONFIG]. MOECHECK replaces the whole command, on a machine that has its own.
set -euo pipefail
cd "$(dirname "$0")/.."

config=${1:-nightly.toml}
venv=${VENV:-.venv}

if [ -z "${MOECHECK:-}" ]; then
    make "$venv/installed" VENV="$venv"
    MOECHECK=$venv/bin/moecheck
fi

code=0
"$MOECHECK" nightly "$config" || code=$?
# GitHub shows this file as the job's summary.
if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f reports/latest/summary.md ]; then
    cat reports/latest/summary.md >>"$GITHUB_STEP_SUMMARY"
fi
exit "$code"
