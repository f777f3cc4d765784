#!/usr/bin/env bash
# Builds wheel and sdist, installs each into an environment of its own, and runs moecheck from another folder.
# Nothing is downloaded: the environments see the packages of the virtual environment that builds them.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
python=$PWD/$venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
git archive --format=tar HEAD | tar -x -C "$work/source"
for link in references kernels evals; do
    [ -d "$work/source/moecheck/$link" ] || { echo "moecheck/$link does not resolve" >&2; exit 1; }
done
(cd "$work/source" && "$python" -m build --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1) || {
    tail -n 40 "$work/build.log" >&2
    exit 1
}
"$python" tools/package_files.py "$work/source" "$work"/dist/*

site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for package in "$work"/dist/*.whl "$work"/dist/*.tar.gz "$work/source"; do
    rm -rf "$work/env"
    "$python" -m venv "$work/env"
    editable=$([ -d "$package" ] && echo --editable || true)
    # The path file makes the dependencies visible, also for building.
    echo "$site" >"$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_parent.pth"
    # The one that comes with Python 3.11 is too old, and would hide the parent's.
    "$work/env/bin/python" -m pip uninstall --quiet --yes setuptools 2>/dev/null || true
    "$work/env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --ignore-installed $editable "$package"
    (
        cd /
        "$work/env/bin/python" -c 'import moecheck, sys; sys.exit(not moecheck.__file__.startswith(sys.argv[1]))' "$work"
        "$work/env/bin/moecheck" list ops >"$work/console.txt"
        "$work/env/bin/python" -m moecheck list ops >"$work/module.txt"
        cmp "$work/console.txt" "$work/module.txt"
        grep -q fused_experts "$work/console.txt"
    )
    echo "ok ${editable:-installed} $(basename "$package")"
done
