"""grub.cfg as Debian, Fedora and others write it."""

from __future__ import annotations

import pytest
from bootloader_stand_in import StandInDisks

from pyxen.bootloader.entry import File, Menu
from pyxen.bootloader.failure import ImageError
from pyxen.bootloader.grub2 import read_grub2

PATH = "/boot/grub/grub.cfg"

DEBIAN = """\
# what update-grub makes, in our words
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod vga
  fi
}
if loadfont unicode ; then
  set gfxmode=auto
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=menu
    set timeout=5
  else
    set timeout=4
  fi
fi
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'simple-1' {
    load_video
    insmod gzio
    if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
    set root='hd0,msdos1'
    if [ x$feature_platform_search_hint = xy ]; then
      search --no-floppy --fs-uuid --set=root --hint-bios=hd0,msdos2 aaaa-bbbb
    else
      search --no-floppy --fs-uuid --set=root aaaa-bbbb
    fi
    echo    'Loading Linux 6.1 ...'
    linux    /boot/vmlinuz-6.1 root=UUID=aaaa-bbbb ro  quiet "two words"
    initrd    /boot/early.img /boot/initrd.img-6.1
}
submenu 'Advanced options' $menuentry_id_option 'advanced-1' {
    menuentry 'Linux 6.1' $menuentry_id_option 'v6.1-1' {
        linux /boot/vmlinuz-6.1 root=UUID=aaaa-bbbb
    }
    menuentry 'Linux 5.10' $menuentry_id_option 'v5.10-1' {
        linux /boot/vmlinuz-5.10 root=UUID=aaaa-bbbb
    }
}
menuentry 'Xen' --class xen {
    multiboot2 /boot/xen-4.17.gz placeholder ${xen_rm_opts}
    module2 /boot/vmlinuz-6.1 placeholder root=UUID=aaaa-bbbb
    module2 --nounzip /boot/initrd.img-6.1
}
menuentry 'Firmware' { chainloader +1; }
"""


def menu(text: str, environment: str | None = None, more: dict[str, str] | None = None) -> Menu:
    first = {PATH: text, **(more or {})}
    if environment is not None:
        first["/boot/grub/grubenv"] = f"# GRUB Environment Block\n{environment}\n#######"
    disks = StandInDisks(first, {"/boot/vmlinuz-6.1": ""}, uuids=["0000", "aaaa-bbbb"])
    return read_grub2(disks, 0, PATH, text)


def default_title(found: Menu) -> str:
    index = found.find(found.default)
    assert index is not None
    return found.entries[index].title


def test_debian() -> None:
    found = menu(DEBIAN)
    assert [entry.title for entry in found.entries] == [
        "Debian GNU/Linux",
        "Linux 6.1",
        "Linux 5.10",
        "Xen",
        "Firmware",
    ]
    first = found.entries[0]
    assert first.kernel == File(1, "/boot/vmlinuz-6.1")
    assert first.args == "root=UUID=aaaa-bbbb ro quiet two words"
    assert [file.path for file in first.ramdisks] == ["/boot/early.img", "/boot/initrd.img-6.1"]
    assert found.timeout_s == 5
    assert default_title(found) == "Debian GNU/Linux"
    assert found.entries[4].kernel is None
    assert "another boot loader" in found.entries[4].note


def test_xen_entries_start_the_kernel_among_the_modules() -> None:
    xen = menu(DEBIAN).entries[3]
    assert xen.kernel == File(0, "/boot/vmlinuz-6.1")
    assert xen.args == "placeholder root=UUID=aaaa-bbbb"
    assert xen.ramdisks == [File(0, "/boot/initrd.img-6.1")]


@pytest.mark.parametrize(
    ("word", "title"),
    [
        ("simple-1", "Debian GNU/Linux"),
        ("1>1", "Linux 5.10"),
        ("1", "Linux 6.1"),
        ("2", "Xen"),
        ("4", "Firmware"),
        ("Linux 5.10", "Linux 5.10"),
        ("advanced-1>v5.10-1", "Linux 5.10"),
        ("Advanced options>v5.10-1", "Linux 5.10"),
        ("old title>v5.10-1", "Linux 5.10"),
    ],
)
def test_what_an_entry_may_be_called(word: str, title: str) -> None:
    found = menu(DEBIAN)
    index = found.find(word)
    assert index is not None
    assert found.entries[index].title == title


def test_next_entry_of_grub_reboot() -> None:
    found = menu(DEBIAN, "next_entry=advanced-1>v5.10-1")
    assert default_title(found) == "Linux 5.10"
    assert any("grub-reboot" in note for note in found.notes)


def test_saved_entry() -> None:
    text = DEBIAN.replace('set default="0"', 'set default="${saved_entry}"')
    assert default_title(menu(text, "saved_entry=Xen")) == "Xen"
    assert default_title(menu(text, "saved_entry=")) == "Debian GNU/Linux"


def test_an_environment_without_its_signature_is_not_read() -> None:
    disks = StandInDisks({"/boot/grub/grubenv": "next_entry=Xen\n"})
    assert read_grub2(disks, 0, PATH, DEBIAN).default == "0"


FEDORA = """\
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
if [ "$feature_default_font_path" = y ] ; then font=unicode; fi
set boot='hd0,gpt2'
if [ "${env_block}" ] ; then set env_block="($root)$env_block"; fi
set kernelopts="root=/dev/mapper/fedora-root ro "
insmod blscfg
blscfg
if [ "${boot_success}" = "1" -o "${boot_indeterminate}" = "1" ]; then
  set menu_hide_ok=1
fi
if [ x$feature_timeout_style = xy -a "$menu_hide_ok" = 1 ]; then
  set timeout=1
else
  set timeout=7
fi
"""


def test_fedora_with_boot_loader_entries() -> None:
    entries = {
        "/loader/entries/abc-5.9.16-200.conf": "title Fedora (5.9.16)\nversion 5.9.16\n"
        "linux /vmlinuz-5.9.16\ninitrd /initramfs-5.9.16.img\noptions $kernelopts rhgb\n",
        "/loader/entries/abc-5.10.2-100.conf": "title Fedora (5.10.2)\nversion 5.10.2\n"
        "linux /vmlinuz-5.10.2\ninitrd /initramfs-5.10.2.img\noptions $kernelopts rhgb\n",
        "/loader/entries/abc-0-rescue.conf": "title Fedora (0-rescue)\nlinux /vmlinuz-0-rescue\n",
    }
    found = menu(FEDORA, "saved_entry=abc-5.9.16-200\nboot_success=1", entries)
    assert [entry.title for entry in found.entries] == [
        "Fedora (5.10.2)",
        "Fedora (5.9.16)",
        "Fedora (0-rescue)",
    ]
    assert default_title(found) == "Fedora (5.9.16)"
    assert found.entries[0].kernel == File(0, "/vmlinuz-5.10.2")
    assert found.entries[0].args == "root=/dev/mapper/fedora-root ro  rhgb"
    assert found.timeout_s == 1


@pytest.mark.parametrize(
    ("test", "true"),
    [
        ("[ a = a ]", True),
        ("[ a != a ]", False),
        ("[ ! a = b ]", True),
        ("[ -z '' -a -n x ]", True),
        ("[ -z x -o a = a ]", True),
        ("[ 10 -gt 9 ]", True),
        ("[ 10 '<' 9 ]", True),
        ("[ ( a = b ) -o ( a = a ) ]", True),
        ("[ -f /boot/grub/grub.cfg ]", True),
        ("[ -e /nothing ]", False),
        ("[ -d /boot ]", True),
        ("test a = b || true", True),
        ("false && true", False),
        ("[ ]", False),
        ("search --file --set=other /boot/grub/grub.cfg", True),
    ],
)
def test_conditions(test: str, true: bool) -> None:
    found = menu(f"if {test}; then menuentry a {{ linux /k }}; else menuentry b {{ linux /k }}; fi")
    assert found.entries[0].title == ("a" if true else "b")


def test_loops_functions_and_included_files() -> None:
    text = """
    function kernel { linux /boot/$1 $2; shift_nothing=1; }
    for i in 1 2 3; do menuentry "Linux $i" v$i { kernel $2 a=$1; }; done
    source $prefix/custom.cfg
    set n=x
    while [ $n != xxx ]; do set n=x$n; done
    menuentry "${n}" { linux /k }
    """
    found = menu(text, more={"/boot/grub/custom.cfg": "menuentry 'mine' { linux (hd0,msdos2)/k }"})
    assert [entry.title for entry in found.entries] == [
        "Linux 1",
        "Linux 2",
        "Linux 3",
        "mine",
        "xxx",
    ]
    assert found.entries[1].kernel == File(0, "/boot/v2")
    assert found.entries[1].args == "a=Linux"
    assert found.entries[3].kernel == File(1, "/k")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("menuentry 'a {", "quote is not closed"),
        ('set a="b', "quote is not closed"),
        ("menuentry a {", "block is not closed"),
        ("if true; then", "fi is missing"),
        ("fi", "not known|out of place"),
        ("}", "without its beginning"),
        ("while true; do true; done", "does not come to an end"),
        ("while true; do\ndone", "does not come to an end"),
        ("function f { f; }\nf", "calls itself"),
        ("source /boot/grub/grub.cfg", "calls itself"),
        ("set a=x\nwhile true; do set a=$a$a$a; done", "too long|not come to an end"),
        ("if true; then " * 100, "nested too deeply"),
        ("for i in 1 2; do menuentry a {\n}; done\n" * 600, "more than"),
    ],
)
def test_what_cannot_be_run(text: str, says: str) -> None:
    try:
        found = menu(text)
    except ImageError as error:
        assert any(word in str(error) for word in says.split("|"))
    else:
        assert any(word in note for note in found.notes for word in says.split("|"))
