#!/bin/sh
# The programs with which tests make and serve disk images. As root, what is missing is installed; without
# root it is named, and the tests that need it say so.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need mke2fs e2fsprogs
need mkfs.xfs xfsprogs
need mkfs.btrfs btrfs-progs
need mkfs.vfat dosfstools
need mcopy mtools
need xorriso xorriso
need sfdisk fdisk
need mmdebstrap mmdebstrap
need newuidmap uidmap
need qemu-img qemu-utils
need qemu-storage-daemon qemu-system-common
ls /usr/lib/*/libnbd.so.0 >/dev/null 2>&1 || missing="$missing libnbd0"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing"
    apt-get install -y -q $missing >/dev/null 2>&1 ||
        { apt-get update -q >/dev/null && apt-get install -y -q $missing >/dev/null; }
else
    echo "note: some tests need$missing: as root, apt-get install$missing"
fi
