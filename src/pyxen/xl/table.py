"""Every command of xl, in the order in which `xl help` shows them.

All of Xen's commands are here, so that abbreviations mean the same; those without a module are not
there yet. `own` ones are not Xen's, and take no abbreviation from one of Xen's.
"""

from __future__ import annotations

from pyxen.xl.command import Command

_HELP = ("-h", "Show this help.")

_SHUTDOWN_OPTIONS = (
    ("-a, --all", "All guests."),
    _HELP,
    ("-F", "For HVM guests without PV drivers: press the ACPI button instead."),
    ("-w, --wait", "Return when it is done."),
)

_TRACE_NAMES = """\
Names: each hypercall (`pyxen hypercalls`) and each trap (page_fault, gp_fault, invalid_op, syscall,
…); pending, upcall; grant_map, grant_unmap. For several: hypercalls, events (or evtchn), grants (or
gnttab), traps, mmu. The domain is slower while something is traced that native code does otherwise:
mmu_update, mmuext_op, update_va_mapping, stack_switch, set_segment_base, multicall, iret, syscall,
page_fault, gp_fault, upcall. Other names cost next to nothing."""

_CREATE = Command(
    "create",
    "create",
    "<ConfigFile> [options] [vars]",
    "Make a domain as <ConfigFile> describes it and start it; key=value words override the file",
    (
        ("-c", "Be the domain's console, from its first byte; Ctrl-] leaves."),
        ("-d", "Show the configuration as it was understood."),
        ("-e", "Nobody acts when the guest ends: it stays until it is destroyed."),
        ("-F", "Stay in the foreground until the domain is gone."),
        ("-f FILE, --defconfig=FILE", "The configuration file."),
        _HELP,
        ("-n, --dryrun", "Only show the configuration as it was understood (also: xl -N)."),
        ("-p", "Leave the domain paused."),
        ("-q, --quiet", "Say nothing."),
        ("-V, --vncviewer", "Open the VNC display (there is none yet)."),
        ("-A, --vncviewer-autopass", "Hand the viewer its password."),
        ("--ignore-global-affinity-masks", "Accepted; there are no global masks."),
    ),
    "AFVcdef:inpq",
    {
        "defconfig=": "f",
        "dryrun": "n",
        "ignore-global-affinity-masks": "i",
        "quiet": "q",
        "vncviewer": "V",
        "vncviewer-autopass": "A",
    },
    modifies=True,
    dry_run=True,
)

_CONFIG_UPDATE = Command(
    "config-update",
    "config_update",
    "<Domain> <ConfigFile> [options] [vars]",
    "Replace the configuration that a domain gets when it is started again",
    (
        _HELP,
        ("-f FILE, --defconfig=FILE", "The configuration file."),
        ("-d", "Show the configuration as it was understood."),
    ),
    "df:",
    {"defconfig=": "f"},
    modifies=True,
    dry_run=True,
)

_LIST = Command(
    "list",
    "list",
    "[options] [Domain]",
    "Show the domains",
    (
        ("-l, --long", "Their whole configuration, as JSON."),
        ("-v, --verbose", "Also uuid, shutdown reason and security label."),
        ("-Z, --context", "Also the security label."),
        ("-c, --cpupool", "Also the CPU pool."),
        ("-n, --numa", "Also the NUMA nodes."),
    ),
    "lvZcn",
    {"long": "l", "verbose": "v", "context": "Z", "cpupool": "c", "numa": "n"},
)

_COMMANDS = (
    _CREATE,
    _CONFIG_UPDATE,
    _LIST,
    Command(
        "destroy",
        "control",
        "[options] <Domain>",
        "End a domain at once, as if its power were cut",
        (("-f", "Accepted; domain 0 is never destroyed: it is the host."),),
        "f",
        modifies=True,
        arguments=1,
    ),
    Command(
        "shutdown",
        "shutdown",
        "[options] <-a|Domain...>",
        "Ask guests to shut down",
        _SHUTDOWN_OPTIONS,
        "awF",
        {"all": "a", "wait": "w"},
        modifies=True,
    ),
    Command(
        "reboot",
        "shutdown",
        "[options] <-a|Domain...>",
        "Ask guests to reboot",
        _SHUTDOWN_OPTIONS,
        "awF",
        {"all": "a", "wait": "w"},
        modifies=True,
    ),
    *map(
        Command,
        (
            "pci-attach",
            "pci-detach",
            "pci-list",
            "pci-assignable-add",
            "pci-assignable-remove",
            "pci-assignable-list",
        ),
    ),
    Command(
        "pause",
        "control",
        "<Domain>",
        "Stop a domain's vCPUs; as many unpauses let them run again",
        modifies=True,
        arguments=1,
    ),
    Command(
        "unpause",
        "control",
        "<Domain>",
        "Undo one pause",
        modifies=True,
        arguments=1,
    ),
    Command(
        "console",
        "console",
        "[options] <Domain>",
        "Be a domain's console; Ctrl-] leaves",
        (
            ("-t <type>", "pv, serial or vuart; a PV guest has pv only."),
            ("-n <number>", "Which console: 0 is the only one."),
            ("-e <char>", "Leave on Ctrl-<char> instead of Ctrl-]."),
        ),
        "n:t:e:",
        arguments=1,
    ),
    *map(Command, ("vncviewer", "save", "migrate", "restore", "migrate-receive", "dump-core")),
    Command(
        "cd-insert",
        "block",
        "<Domain> <VirtualDevice> <path>",
        "Put a medium into a domain's CD-ROM drive",
        modifies=True,
        dry_run=True,
        arguments=3,
    ),
    Command(
        "cd-eject",
        "block",
        "<Domain> <VirtualDevice>",
        "Take the medium out of a domain's CD-ROM drive",
        modifies=True,
        dry_run=True,
        arguments=2,
    ),
    *map(Command, ("mem-max", "mem-set", "button-press")),
    Command("vcpu-list", "list", "[Domain, ...]", "Show vCPUs: what they do, and where"),
    *map(Command, ("vcpu-pin", "vcpu-set")),
    Command("vm-list", "list", "", "Show names and uuids of the domains"),
    Command(
        "info",
        "info",
        "[-n]",
        "Show what this Xen and its host are",
        (("-n, --numa", "Also the topology of CPUs and memory."),),
        "n",
        {"numa": "n"},
    ),
    *map(Command, ("sharing", "sched-credit", "sched-credit2", "sched-rtds")),
    Command("domid", "names", "<DomainName>", "Show the number of a domain", arguments=1),
    Command("domname", "names", "<DomainId>", "Show the name of a domain", arguments=1),
    Command(
        "rename",
        "names",
        "<Domain> <NewDomainName>",
        "Give a domain another name",
        modifies=True,
        arguments=2,
    ),
    *map(Command, ("trigger", "sysrq", "debug-keys", "set-parameters")),
    Command(
        "dmesg",
        "info",
        "[-c]",
        "Show what the hypervisor had to say",
        (("-c", "And forget it."),),
        "c",
    ),
    Command(
        "trace",
        "trace",
        "[options] <Domain>",
        "Show what a domain does: hypercalls, events, uses of grants, traps",
        (
            ("-e <names>", "Only these, with commas: mmu_update,evtchn,page_fault; see below."),
            ("--hypercalls, --events", "Only hypercalls; only events and event_channel_op."),
            ("--grants, --traps", "Only uses of grants and grant_table_op; only traps."),
            ("-c", "Count: a table of calls, errors and time at the end, or at Ctrl-C."),
            ("-n <count>", "End after so many records."),
            ("-d <seconds>", "End after this time."),
            ("-o <file>", "Write to a file."),
            ("--json", "A JSON object for each record."),
            _HELP,
        ),
        "e:cn:d:o:",
        {"hypercalls": "H", "events": "E", "grants": "G", "traps": "T", "json": "j"},
        arguments=1,
        own=True,
        more=_TRACE_NAMES,
    ),
    *map(Command, ("top", "network-attach", "network-list", "network-detach", "channel-list")),
    Command(
        "block-attach",
        "block",
        "<Domain> <disk-spec-component(s)>...",
        "Give a domain another disk, such as: xl block-attach guest /path/of/image,raw,xvdb,rw",
        modifies=True,
        dry_run=True,
        arguments=2,
    ),
    Command("block-list", "block", "<Domain(s)>", "Show the disks of domains", arguments=1),
    Command(
        "block-detach",
        "block",
        "[option] <Domain> <DevId>",
        "Take a disk from a domain, by its number or the name the guest has for it",
        (("-f, --force", "Whether the guest lets it go or not."),),
        "f",
        {"force": "f"},
        modifies=True,
        arguments=2,
    ),
    *(
        Command(f"{kind}-{verb}")
        for kind in ("vtpm", "vkb", "vdispl", "vsnd")
        for verb in ("attach", "list", "detach")
    ),
    Command(
        "uptime",
        "list",
        "[-s] [Domain...]",
        "Show how long domains have been running",
        (("-s", "Short: with the time of day, without seconds."),),
        "s",
    ),
    *map(
        Command,
        (
            "claims",
            "cpupool-create",
            "cpupool-list",
            "cpupool-destroy",
            "cpupool-rename",
            "cpupool-cpu-add",
            "cpupool-cpu-remove",
            "cpupool-migrate",
            "cpupool-numa-split",
            "getenforce",
            "setenforce",
            "loadpolicy",
            "remus",
            "devd",
            "psr-hwinfo",
            "psr-cmt-attach",
            "psr-cmt-detach",
            "psr-cmt-show",
            "psr-cat-set",
            "psr-cat-show",
            "psr-mba-set",
            "psr-mba-show",
            "usbctrl-attach",
            "usbctrl-detach",
            "usbdev-attach",
            "usbdev-detach",
            "usb-list",
            "qemu-monitor-command",
        ),
    ),
)

COMMANDS = {command.name: command for command in _COMMANDS}


def matches(word: str) -> list[Command]:
    """The command of this name; else every one whose name begins with it, Xen's before ours."""
    exact = COMMANDS.get(word)
    if exact is not None:
        return [exact]
    found = [command for command in _COMMANDS if word and command.name.startswith(word)]
    return [command for command in found if not command.own] or found
