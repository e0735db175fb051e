#!/bin/sh
# The demo: make a guest from Debian's kernel and boot it. demo.sh BIN DIR
# On a terminal: an interactive shell in the guest. Else: a scripted session.
set -eu
bin=$1 dir=$2
[ -e "$dir/demo.cfg" ] || "$bin/pyxen" image demo "$dir"
"$bin/xl" destroy demo 2>/dev/null || true
if [ -t 0 ] && [ -t 1 ]; then
    echo "booting: type in the guest's shell; poweroff ends it, Ctrl-] leaves it running"
    exec "$bin/xl" create -c "$dir/demo.cfg"
fi
exec "$bin/python" scripts/demo_session.py "$bin" "$dir/demo.cfg"
