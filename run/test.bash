#!/usr/bin/env bash
# Check the code: ruff, all tests, and the quick form of run/faults.bash.
# Where there is a GPU, its tests come after the others, which run on the CPU
# everywhere.
#
#   bash run/test.bash [pytest flags]
#
#   bash run/test.bash
#         everything, one worker a core
#   bash run/test.bash -m 'not slow'
#         without the slow tests
#   bash run/test.bash tests/adaptive -x --pdb
#         part of it, in a debugger, in one process
#   bash run/test.bash -m gpu
#         the tests that need a GPU, in one process
#
# Takes about nine minutes on two CPU cores. The exit code is 0 if everything
# passed.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
[[ ${1:-} != -h && ${1:-} != --help ]] || exit 0 # the header says it all

workers=(-n logical --dist worksteal)
for flag in "$@"; do
    case "$flag" in
        # Output and debuggers need the terminal, which workers do not have; -n is the user's own choice.
        -s | --capture=no | --pdb | --trace | -n* | --numprocesses*) workers=() ;;
        # A worker a core would fill a GPU with the contexts of as many processes.
        gpu | gpu\ * | tests/gpu*) workers=() ;;
    esac
done

failures=0
step() { # <name> <command...>: runs it and says how long it took; a failure does not keep the next step from running
    local name=$1 start=$SECONDS outcome=passed
    shift
    "$@" || {
        outcome=FAILED
        failures=$((failures + 1))
    }
    echo "$name $outcome in $((SECONDS - start)) s"
}

export OMP_NUM_THREADS=1 # a thread a worker: more would fight for the cores
step "ruff check" "$PYTHON" -m ruff check .
step "ruff format" "$PYTHON" -m ruff format --check .
# The odd expansion: bash 3.2 takes an empty array for an unset variable.
step "pytest" "$PYTHON" -m pytest ${workers[@]+"${workers[@]}"} "$@"
gpus=$(nvidia-smi -L 2>/dev/null || true) # whole, before it is looked through: a pipe that closes early is a failure here
if (($# == 0)) && [[ $gpus == "GPU "* || $gpus == *$'\n'"GPU "* ]]; then
    step "pytest on the GPU" "$PYTHON" -m pytest -m gpu
fi
# What happens to long runs, done to small ones; a part of it, the rest is for run/faults.bash.
(($#)) || step "faults" bash run/faults.bash --quick
((failures == 0))
