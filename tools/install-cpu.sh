#!/usr/bin/env bash
# Creates the virtual environment and installs moecheck into it, editable, with every extra that runs on a CPU, at the
# versions of constraints-cpu.txt. Safe to run again. CONTRIBUTING.md describes the variables.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-$(command -v python3.11 || command -v python3)}
venv=${VENV:-.venv}
torch_index=${TORCH_INDEX_URL:-}
cpu_index=https://download.pytorch.org/whl/cpu
torch=$(grep '^torch==' constraints-cpu.txt)
export PIP_DISABLE_PIP_VERSION_CHECK=1

create() {
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    else # Debian keeps ensurepip in a package of its own
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip || {
            rm -rf "$venv"
            echo "install-cpu: this Python has neither ensurepip nor pip: apt-get install python3-venv" >&2
            exit 1
        }
    fi
}

pip() { "$venv/bin/python" -m pip "$@"; }

# Whether the package index has a build of torch that brings no CUDA packages.
index_has_cpu_torch() {
    if pip index versions torch 2>/dev/null | grep -qF "${torch#torch==}+cpu"; then
        return 0
    fi
    # Before 23.3 pip downloads all that it would install, gigabytes here, to tell what it would install.
    pip install --quiet 'pip>=23.3'
    ! pip install --dry-run --quiet --report - "$torch" 2>/dev/null | grep -q '"name": "nvidia-'
}

[ -x "$venv/bin/python" ] || create
pip install --quiet --constraint constraints-cpu.txt setuptools
if ! pip show --quiet torch 2>/dev/null; then
    if [ -z "$torch_index" ] && ! command -v nvidia-smi >/dev/null && ! index_has_cpu_torch; then
        torch_index=$cpu_index
    fi
    if [ -n "$torch_index" ]; then
        pip install --quiet --index-url "$torch_index" "$torch"
    fi
fi
pip install --quiet --constraint constraints-cpu.txt --no-build-isolation --editable '.[all,test]'
