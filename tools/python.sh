#!/bin/sh
# Print the Python to build with: $PYTHON, or the first of python3, python3.13, python3.12 and
# python3.11 that is 3.11 or newer, one that can make virtual environments before one that cannot.
set -u

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
makes_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || { echo "PYTHON=$PYTHON is not a Python 3.11 or newer." >&2; exit 1; }
    echo "$PYTHON"
    exit 0
fi
fallback=
for candidate in python3 python3.13 python3.12 python3.11; do
    new_enough "$candidate" || continue
    makes_venvs "$candidate" && { echo "$candidate"; exit 0; }
    fallback=${fallback:-$candidate}
done
[ -n "$fallback" ] || {
    echo "No Python 3.11 or newer was found. Install one, or name it: make PYTHON=/path/to/python3" >&2
    exit 1
}
echo "$fallback"
