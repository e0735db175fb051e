"""Files that a Debian guest has besides those of its packages."""

from __future__ import annotations

from typing import Final

WRITE_GRUB_CFG: Final = r"""#!/bin/sh
# write-grub-cfg [ROOT]: write /boot/grub/grub.cfg, with an entry for each kernel in /boot, the
# newest first. There is no GRUB on this disk: pygrub reads the file from outside.
# It is run whenever a kernel comes or goes; after a change of /etc/default/grub run it by hand.
set -eu
umask 022
root=${1-}
GRUB_TIMEOUT=3 GRUB_CMDLINE_LINUX=
[ ! -r "$root/etc/default/grub" ] || . "$root/etc/default/grub"
while read -r device where _; do
    [ "$where" != / ] || break
done <"$root/etc/fstab"

entry() {
    echo "menuentry \"$1\" {"
    echo "    insmod part_msdos"
    echo "    insmod ext2"
    case $device in
    UUID=*) echo "    search --no-floppy --fs-uuid --set=root ${device#UUID=}" ;;
    *) echo "    set root=\"hd0,msdos1\"" ;;
    esac
    echo "    linux /boot/vmlinuz-$release root=$device ro $2"
    [ ! -e "$root/boot/initrd.img-$release" ] || echo "    initrd /boot/initrd.img-$release"
    echo "}"
}

mkdir -p "$root/boot/grub"
{
    echo "# Written by write-grub-cfg from /etc/default/grub and /etc/fstab."
    echo "set default=\"0\""
    echo "set timeout=\"$GRUB_TIMEOUT\""
    for kernel in $(cd "$root/boot" && ls -d vmlinuz-* 2>/dev/null | sort -Vr); do
        release=${kernel#vmlinuz-}
        entry "Debian GNU/Linux, with Linux $release" "$GRUB_CMDLINE_LINUX"
        entry "Debian GNU/Linux, with Linux $release (recovery mode)" "$GRUB_CMDLINE_LINUX single"
    done
} >"$root/boot/grub/grub.cfg.new"
mv "$root/boot/grub/grub.cfg.new" "$root/boot/grub/grub.cfg"
"""

KERNEL_HOOK: Final = "#!/bin/sh\nexec /usr/local/sbin/write-grub-cfg\n"

DEFAULT_GRUB: Final = """\
# For write-grub-cfg: how long the menu is shown, and what kernels are told.
GRUB_TIMEOUT=3
GRUB_CMDLINE_LINUX="console=hvc0"
"""

FSTAB: Final = "UUID={uuid} / ext4 errors=remount-ro 0 1\n"

HOSTS: Final = """\
127.0.0.1 localhost
127.0.1.1 {name}
::1 localhost ip6-localhost ip6-loopback
"""

AUTOLOGIN: Final = r"""[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
"""
