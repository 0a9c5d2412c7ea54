#!/bin/sh
# Install what only root can: Python's venv module, the servers that the tests run (Mosquitto, Redis,
# NATS) and strace, or only the ones named. Leaves no service enabled or running, and does not touch a
# server that was there before. Fails, naming the command to run, where it may not.
#
#     sh tools/deps.sh [venv] [mosquitto] [redis-server] [nats-server] [strace]
set -eu
cd "$(dirname "$0")/.."

servers="mosquitto redis-server nats-server" # named alike: package, program and service
# shellcheck disable=SC2086 # several words are several arguments
[ $# -gt 0 ] || set -- venv $servers strace

has() { [ -x "$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$1" || true)" ]; }
installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

packages=
for need in "$@"; do
    case $need in
    venv)
        python=$(sh tools/python.sh 2>/dev/null) || python=
        if [ -z "$python" ]; then
            packages="$packages python3 python3-venv"
        elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            packages="$packages python$version-venv"
        fi
        ;;
    mosquitto | redis-server | nats-server | strace)
        has "$need" || packages="$packages $need"
        ;;
    *)
        echo "$0: $need: not known here; known are venv $servers strace" >&2
        exit 2
        ;;
    esac
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then
        exec sudo -n env PYTHON="${PYTHON:-}" sh tools/deps.sh "$@"
    fi
    if command -v sudo >/dev/null; then become="sudo make deps"; else become="su -c 'make deps'"; fi
    echo "Only root can install$packages. Run in this folder:  $become" >&2
    exit 1
fi
command -v apt-get >/dev/null || {
    echo "Install with this system's package manager what Debian calls:$packages" >&2
    exit 1
}

# A package that starts its service would fight over the port with whoever has it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
fresh=
for server in $servers; do
    installed "$server" || fresh="$fresh $server"
done

echo "Installing$packages" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2 || true # what is known already may do
# shellcheck disable=SC2086 # several words are several packages
apt-get install -y -qq --no-install-recommends $packages >&2

for server in $fresh; do
    installed "$server" || continue
    if command -v systemctl >/dev/null; then
        systemctl disable "$server.service" >/dev/null 2>&1 || true
        [ ! -d /run/systemd/system ] || systemctl stop "$server.service" || true
    else
        update-rc.d "$server" disable >/dev/null 2>&1 || true
    fi
done
