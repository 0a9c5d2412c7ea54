#!/bin/sh
# Make .venv and install the project into it, editable, with the extras named. Instant when nothing
# changed since: pyproject.toml, the folder and the interpreter are noted beside what was installed.
#
#     sh tools/setup.sh gateway,mesh[,dev[,bench]]
set -eu
cd "$(dirname "$0")/.."

extras=$1
python=.venv/bin/python
works() { [ -x $python ] && $python -c 'import pip' 2>/dev/null; }
state() { { pwd -P; $python -VV; cat pyproject.toml; } | cksum; }

if works; then
    now=$(state)
    for stamp in ".venv/installed-$extras"*; do # with more than what is named, too
        [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$now" ] || exit 0
    done
else
    base=$(sh tools/python.sh) || { sh tools/deps.sh venv && base=$(sh tools/python.sh); }
    "$base" -c 'import ensurepip, venv' 2>/dev/null || sh tools/deps.sh venv
    echo "Making .venv with $("$base" -V) ($base)" >&2
    "$base" -m venv --clear .venv
fi

echo "Installing qis-edge[$extras] into .venv" >&2
$python -m pip install -q -e ".[$extras]" || {
    echo "pip could not install the project: see above. It needs a package index or its wheels." >&2
    exit 1
}
state >".venv/installed-$extras"
