#!/usr/bin/env bash
# Opens an issue about a red night, or adds to the one that is open. Usage: tools/open-issue.sh WHERE; needs gh, and
# GH_TOKEN, GH_REPO and RUN (the address of the workflow's run) in the environment.
set -euo pipefail
cd "$(dirname "$0")/.."

title="moecheck nightly on $1 is red"
body=$(mktemp)
trap 'rm -f "$body"' EXIT
{
    echo "$RUN"
    echo
    # An issue has at most 65,536 characters.
    if [ -f reports/latest/summary.md ]; then
        head -c 60000 reports/latest/summary.md
    else
        echo "The night left no report: see the log."
    fi
} >"$body"

number=$(gh issue list --state open --search "in:title \"$title\"" --json number --jq '.[0].number // empty')
if [ -n "$number" ]; then
    gh issue comment "$number" --body-file "$body"
else
    gh issue create --title "$title" --body-file "$body"
fi
