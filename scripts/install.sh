#!/bin/sh
# Install pyxen into a virtual environment: install.sh VENV WHAT
# As root, missing Debian packages are installed first; without root, what is missing is named.
set -eu
venv=$1 what=$2
python=${PYTHON:-python3}

missing=
command -v "$python" >/dev/null || missing="$missing python3"
"$python" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
command -v gcc >/dev/null || missing="$missing gcc"
command -v as >/dev/null || missing="$missing binutils"
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing"
    apt-get install -y -q $missing >/dev/null 2>&1 ||
        { apt-get update -q >/dev/null && apt-get install -y -q $missing >/dev/null; }
    missing=
fi
case "$missing" in
*python3*)
    echo "please install$missing: as root, apt-get install$missing" >&2
    exit 1 ;;
?*)
    echo "note: without$missing the native hot path is not built; everything works, more slowly" ;;
esac

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing pyxen into $venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e "$what"
