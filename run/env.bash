# shellcheck shell=bash
# The environment of the launchers, which source this file: it is not run by itself.
#
# Goes to the repository root and exports PYTHON (absolute path) and PYTHONPATH. Which Python:
#   1. the `python3` on the PATH (an active virtual environment, conda, ...) if it has all of requirements.txt:
#      it is used as it is, so that a PyTorch built for a GPU stays;
#   2. else .venv in the repository root, if it is complete;
#   3. else .venv is made and filled with what run/constraints.txt pins, which downloads PyTorch and takes a
#      few minutes, once.

set -euo pipefail

root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)"
if [[ ${1:-} == -h || ${1:-} == --help ]] && ! declare -F usage >/dev/null; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" # what the launcher says of itself; its flags follow
fi
export STARTED_IN="${STARTED_IN:-$PWD}" # where the user stands: paths in flags are as seen from there
cd "$root"
export PYTHONPATH="$root/src"
export TOKENIZERS_PARALLELISM=false
export MPLBACKEND=agg # pictures go to files; a notebook's or desktop's back end may be missing here

venv_python="$root/.venv/bin/python"
stamp="$root/.venv/installed" # written last, so that an interrupted installation is never taken for complete

say() { echo "$*" >&2; }
fail() {
    say "error: $*"
    exit 2
}

# Prints the path of the python3 on the PATH if it has all of requirements.txt; else fails, printing what it lacks.
# Reads package metadata only, because importing torch takes seconds.
satisfying_python() {
    python3 - 2>/dev/null <<'PYTHON'
import os
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

if os.path.realpath(sys.prefix) == os.path.realpath(".venv"):
    sys.exit(1)  # an active .venv may be half installed: its stamp decides
with open("requirements.txt", encoding="utf-8") as file:
    lines = [line.split("#")[0].strip() for line in file]
for requirement in map(Requirement, filter(None, lines)):
    if requirement.marker and not requirement.marker.evaluate():
        continue
    try:
        met = requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        met = False
    if not met:
        print(requirement)
        sys.exit(1)
print(sys.executable)
PYTHON
}

# Prints "3.11.7"; fails if there is no such Python or it does not run.
version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

new_enough() { [[ $1 =~ ^3\.([0-9]+)\. ]] && ((BASH_REMATCH[1] >= 10)); }

# What the stamp of a complete .venv holds. The Python version is part of it because a system upgrade can
# exchange the interpreter below .venv, which then no longer finds its packages.
fingerprint() {
    "$venv_python" - 2>/dev/null <<'PYTHON'
import hashlib
import sys

digest = hashlib.sha256()
for name in ("requirements.txt", "run/constraints.txt"):
    with open(name, "rb") as file:
        digest.update(file.read())
print(digest.hexdigest(), "%d.%d" % sys.version_info[:2])
PYTHON
}

venv_is_complete() { [[ -s $stamp && $(fingerprint) == "$(cat "$stamp")" ]]; }

# Sets base to a Python that can make .venv.
find_base_python() {
    local name version too_old="" without_venv=""
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        version="$(version_of "$name")" || continue
        if ! new_enough "$version"; then
            too_old="${too_old:-the $name found ($(command -v "$name")) is $version}"
        elif ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            without_venv="${without_venv:-$version ($(command -v "$name"))}"
        else
            base=$name
            return
        fi
    done
    [[ -z $without_venv ]] || fail "Python $without_venv lacks the venv module: install it" \
        "(on Debian and Ubuntu: sudo apt install python3-venv) and start again."
    fail "Python 3.10 or newer is needed, but ${too_old:-no python3 was found on the PATH}:" \
        "install a newer one and start again."
}

make_venv() {
    local base
    if ! new_enough "$(version_of "$venv_python")" ||
        ! { "$venv_python" -m pip --version || "$venv_python" -m ensurepip; } >/dev/null 2>&1; then
        find_base_python
        say "Making .venv with Python $(version_of "$base")${lacking:+, because the python3 on the PATH lacks $lacking}."
        "$base" -m venv --clear .venv >&2 || fail "making .venv failed (see above): is the disk full or read-only?"
    fi
    say "Installing requirements.txt into .venv: a few minutes, once."
    rm -f "$stamp"
    "$venv_python" -m pip install --disable-pip-version-check -r requirements.txt -c run/constraints.txt >&2 ||
        fail "installing requirements.txt into .venv failed (see pip's messages above):" \
            "check the network connection and the free disk space, then start again."
    fingerprint >"$stamp"
}

# Two launchers started at once on a fresh copy must not fill the same .venv: the second one waits.
# The lock is on requirements.txt, opened for appending because NFS locks nothing opened for reading.
make_venv_locked() {
    (
        wait_for_the_other ||
            say "This disk has no locks (flock): start no other launcher until .venv is made."
        venv_is_complete || make_venv
    ) 9>>requirements.txt
}

# Returns when this launcher has the lock on descriptor 9; fails where there is no lock to be had.
wait_for_the_other() {
    local status=0
    flock -n 9 2>/dev/null || status=$?
    case $status in
        0) ;;
        1) say "Waiting for another launcher that is making .venv." && flock 9 2>/dev/null ;;
        *) return 1 ;; # the disk refuses, or there is no such program
    esac
}

find_python() {
    local answer lacking=""
    if answer="$(satisfying_python)"; then
        PYTHON=$answer
    else
        lacking=$answer
        venv_is_complete || make_venv_locked
        PYTHON=$venv_python
    fi
    export PYTHON
}

# choose_gpu <gpu>: "0", "0,1" (one process each) or "cpu".
# Exports CUDA_VISIBLE_DEVICES and sets the array LAUNCH to what a training script is started with.
choose_gpu() {
    local gpu=$1 present index
    [[ $gpu == cpu || $gpu =~ ^[0-9]+(,[0-9]+)*$ ]] ||
        fail "the GPU is a number such as 0, several such as 0,1, or cpu; not '$gpu'."
    present="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
    LAUNCH=("$PYTHON")
    if [[ $gpu == cpu || $present == 0 ]]; then
        [[ $gpu == cpu ]] || say "no GPU found: $gpu is ignored, running on the CPU"
        export CUDA_VISIBLE_DEVICES="" ACCELERATE_USE_CPU=true
        return
    fi
    local chosen seen=","
    IFS=, read -r -a chosen <<<"$gpu"
    for index in "${chosen[@]}"; do
        ((10#$index < present)) || fail "there is no GPU $index: this machine has $present, counted from 0."
        [[ $seen != *",$index,"* ]] || fail "GPU $index is named twice in '$gpu'."
        seen+="$index,"
    done
    export CUDA_VISIBLE_DEVICES=$gpu
    if ((${#chosen[@]} > 1)); then
        # Every setting is given, so that no configuration file is needed; port 0 is any free port.
        LAUNCH+=(-m accelerate.commands.launch --multi_gpu --num_machines 1 --num_processes "${#chosen[@]}"
            --gpu_ids all --main_process_port 0 --mixed_precision no --dynamo_backend no)
    fi
}

find_python
