"""The scripts of the demo guest. They run under busybox inside of the guest.

Every fork costs the guest some ten milliseconds of its boot, so /init uses what the shell itself
can do (read, echo, case) wherever that is enough.
"""

from __future__ import annotations

from typing import Final

INIT: Final = r"""#!/bin/sh
# The demo guest's first process.
export PATH=/bin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts

# A host name on the kernel's command line wins, else the domain's name.
read -r cmdline </proc/cmdline
hostname=
for word in $cmdline; do
    case $word in hostname=*) hostname=${word#hostname=} ;; esac
done
echo "${hostname:-demo}" >/proc/sys/kernel/hostname
if [ -z "$hostname" ] && [ -e /dev/xen/xenbus ]; then
    (name=$(timeout 5 xenstore-read name 2>/dev/null) && [ -n "$name" ] &&
        echo "$name" >/proc/sys/kernel/hostname) &
fi

# From now on devices and vCPUs that appear are taken into use; then those that were there before.
uevent /bin/hotplug &
for device in /sys/bus/xen/devices/*; do
    [ -e "$device" ] && ACTION=add SUBSYSTEM=xen DEVPATH=${device#/sys} /bin/hotplug
done
for online in /sys/devices/system/cpu/cpu*/online; do
    [ -e "$online" ] && read -r state <"$online" && [ "$state" = 0 ] && echo 1 >"$online"
done

read -r _ _ release _ </proc/version
read -r _ kib _ </proc/meminfo
read -r uptime _ </proc/uptime
cpus=0
while read -r key _; do [ "$key" = processor ] && cpus=$((cpus + 1)); done </proc/cpuinfo
read -r hypervisor 2>/dev/null </sys/hypervisor/type || hypervisor=none
echo
mib=$((kib / 1024))
echo "Welcome to the pyxen demo: Linux $release, $cpus vCPU, $mib MiB, up after $uptime s"
echo "(hypervisor: $hypervisor). \`poweroff\` and \`reboot\` do that; \`exit\` starts a new shell."
echo

# It runs the shell again and again, and obeys busybox' own poweroff, halt and reboot.
exec init
"""

MOUNT_ROOT: Final = r"""#!/bin/sh
# The first process of a guest that starts from its disk: finds the disk, and goes on there.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
read -r cmdline </proc/cmdline
root=/dev/xvda1 mode=ro
for word in $cmdline; do
    case $word in root=*) root=${word#root=} ;; ro | rw) mode=$word ;; esac
done
for module in xen-blkfront crc32c_generic ext4; do modprobe -q $module; done
tries=0
until [ -b "$root" ]; do
    tries=$((tries + 1))
    if [ $tries = 100 ]; then
        echo "there is no disk $root; these are there:"
        echo /sys/class/block/*
        exec sh
    fi
    sleep 0.1
done
mount -t ext4 -o "$mode" "$root" /newroot || exec sh
exec switch_root /newroot /init
"""

INITTAB: Final = """\
# For busybox' init: a shell with a controlling terminal, so that Ctrl-C reaches what runs in it.
::respawn:cttyhack sh -l
::ctrlaltdel:/bin/reboot
"""

PROFILE: Final = r"""export PATH=/bin HOME=/root TERM=${TERM:-linux}
export PS1='demo:\w# '
# Without the detour through process 1 that busybox' own commands make.
alias poweroff=/bin/poweroff reboot=/bin/reboot halt=/bin/poweroff
cd /
"""

HOTPLUG: Final = r"""#!/bin/sh
# Run by uevent(8) with the event in the environment.
[ "$ACTION" = add ] || exit 0
case $SUBSYSTEM in
cpu)
    [ -e "/sys$DEVPATH/online" ] && echo 1 >"/sys$DEVPATH/online"
    ;;
xen)
    [ -n "$MODALIAS" ] || read -r MODALIAS 2>/dev/null <"/sys$DEVPATH/modalias"
    [ -n "$MODALIAS" ] && modprobe -q "$MODALIAS"
    ;;
net)
    case $INTERFACE in
    eth*)
        ip link set "$INTERFACE" up
        udhcpc -i "$INTERFACE" -s /bin/udhcpc-script -n -q >/dev/null 2>&1 &
        ;;
    esac
    ;;
esac
exit 0
"""

UDHCPC: Final = r"""#!/bin/sh
# Takes the address that a DHCP server gave.
case $1 in
deconfig) ip addr flush dev "$interface" ;;
bound | renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
        ip route replace default via "$gateway"
        break
    done
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
    ;;
esac
"""

# A message on /dev/xen/xenbus is a header of four 32-bit words (type, request, transaction, length)
# and its payload; the reply looks the same. Source: public/io/xs_wire.h.
_XENSTORE: Final = r"""#!/bin/sh
# %(usage)s
[ $# -eq %(arguments)d ] || { echo "usage: %(usage)s" >&2; exit 2; }
%(payload)s
[ $length -lt 256 ] || { echo "longer than 255 bytes" >&2; exit 2; }
printf "\\$(printf %%o %(type)d)\0\0\0\0\0\0\0\0\0\0\0\\$(printf %%o $length)\0\0\0" >/tmp/xs.$$
%(append)s >>/tmp/xs.$$
exec 3<>/dev/xen/xenbus || exit 1
cat /tmp/xs.$$ >&3
dd bs=4112 count=1 <&3 2>/dev/null >/tmp/xs.$$
case $(od -An -tu1 -N1 /tmp/xs.$$) in
*16) tail -c +17 /tmp/xs.$$ | tr '\0' '\n' >&2; rm /tmp/xs.$$; exit 1 ;;
esac
%(show)s
rm /tmp/xs.$$
"""


def _xenstore(type_: int, usage: str, payload: str, append: str, show: str) -> str:
    return _XENSTORE % {
        "usage": usage,
        "arguments": len(usage.split()) - 1,
        "payload": payload,
        "type": type_,
        "append": append,
        "show": show,
    }


_PATH_ONLY: Final = ("length=$((${#1} + 1))", 'printf "%s\\0" "$1"')

XENSTORE_READ: Final = _xenstore(
    2, "xenstore-read PATH", *_PATH_ONLY, "tail -c +17 /tmp/xs.$$\necho"
)
XENSTORE_LIST: Final = _xenstore(
    1, "xenstore-list PATH", *_PATH_ONLY, r"tail -c +17 /tmp/xs.$$ | tr '\0' '\n'"
)
XENSTORE_WRITE: Final = _xenstore(
    11,
    "xenstore-write PATH VALUE",
    "length=$((${#1} + 1 + ${#2}))",
    'printf "%s\\0%s" "$1" "$2"',
    ":",
)

POWEROFF: Final = "#!/bin/sh\nsync\nexec busybox poweroff -f\n"
REBOOT: Final = "#!/bin/sh\nsync\nexec busybox reboot -f\n"
SHUTDOWN: Final = """#!/bin/sh
# shutdown [-r] [-h] [-P] [when]
for word in "$@"; do
    [ "$word" = -r ] && exec /bin/reboot
done
exec /bin/poweroff
"""

SCRIPTS: Final = {
    "init": INIT,
    "bin/hotplug": HOTPLUG,
    "bin/udhcpc-script": UDHCPC,
    "bin/xenstore-read": XENSTORE_READ,
    "bin/xenstore-list": XENSTORE_LIST,
    "bin/xenstore-write": XENSTORE_WRITE,
    "bin/poweroff": POWEROFF,
    "bin/halt": POWEROFF,
    "bin/reboot": REBOOT,
    "bin/shutdown": SHUTDOWN,
}
"""Executable files of the guest. Linux calls /sbin/poweroff and /sbin/reboot for `xl shutdown`
and `xl reboot`; /sbin is /bin here."""
