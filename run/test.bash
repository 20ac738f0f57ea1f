#!/usr/bin/env bash
# Check the code: ruff's rules and format, all tests including the slow ones, the quick form of run/faults.bash.
#
#   bash run/test.bash [pytest flags]
#
#   bash run/test.bash                          everything, one worker a core
#   bash run/test.bash -m 'not slow'            without the slow tests
#   bash run/test.bash tests/adaptive -x --pdb  part of it, in a debugger, in one process
#
# Takes less than five minutes on two CPU cores. The exit code is 0 if everything passed.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"

workers=(-n logical)
for flag in "$@"; do
    case "$flag" in
        # Output and debuggers need the terminal, which workers do not have; -n is the user's own choice.
        -s | --capture=no | --pdb | --trace | -n* | --numprocesses*) workers=() ;;
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
# What happens to long runs, done to small ones; a part of it, the rest is for run/faults.bash.
(($#)) || step "faults" bash run/faults.bash --quick
((failures == 0))
