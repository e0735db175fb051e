"""GRUB 2's grub.cfg: run the script, and then each menu entry as if it had been chosen.

Nothing is written: `save_env` is taken for done, so a `next_entry` that grub-reboot left counts at
every start until the guest itself removes it.

Source: GRUB manual 2.06, chapters 6, 15, 16.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyxen.bootloader import bls, grub_test
from pyxen.bootloader.entry import Disks, Entry, File, Menu
from pyxen.bootloader.failure import ImageError
from pyxen.bootloader.grub_script import (
    Chain,
    Command,
    For,
    Function,
    If,
    Loop,
    Statement,
    Token,
    parse,
)

STEPS_MAX = 100_000
CALLS_MAX = 30
VALUE_CHARS_MAX = 16384
ENTRIES_MAX = 1000
NOTES_MAX = 50
ENVIRONMENT_SIGNATURE = "# GRUB Environment Block"

_FEATURES = (
    *("feature_menuentry_id", "feature_menuentry_options", "feature_default_font_path"),
    *("feature_chainloader_bpb", "feature_ntldr", "feature_platform_search_hint"),
    *("feature_all_video_module", "feature_timeout_style", "feature_200_final"),
    "feature_nativedisk_cmd",
)
_DONE = frozenset(
    (
        *("insmod", "rmmod", "terminal", "terminal_input", "terminal_output", "serial", "clear"),
        *("export", "save_env", "increment", "echo", "sleep", "play", "normal", "true"),
        *("background_image", "background_color", "password", "password_pbkdf2", "acpi"),
        *("cutmem", "badram", "keymap"),
    )
)
"""Commands that change nothing for a kernel that is started by its name."""
_FAILING = frozenset(
    ("loadfont", "keystatus", "false", "probe", "cpuid", "cmostest", "sendkey", "videoinfo")
)
"""Commands whose answer is no."""


@dataclass
class _Choice:
    """A menuentry that was met: what is to be run if it is chosen."""

    entry: Entry
    body: list[Statement]
    arguments: list[str]
    variables: dict[str, str]


@dataclass
class _Boot:
    """What the commands of one entry have loaded."""

    kernel: File | None = None
    args: str = ""
    ramdisks: list[File] = field(default_factory=list)
    modules: list[tuple[File, str]] | None = None


@dataclass(frozen=True)
class _Place:
    """Where in the menu we are: numbers and names of the submenus."""

    numbers: tuple[str, ...] = ()
    names: tuple[frozenset[str], ...] = ()


def read_grub2(disks: Disks, volume: int, path: str, text: str) -> Menu:
    """The menu of a grub.cfg. ImageError if it cannot be run."""
    return _Grub2(disks, volume, path).run(text)


class _Grub2:
    def __init__(self, disks: Disks, volume: int, path: str) -> None:
        self._disks = disks
        self._volume = volume
        self._menu = Menu(path, volume)
        self._choices: list[_Choice] = []
        self._functions: dict[str, list[Statement]] = {}
        self._arguments: list[str] = []
        self._place = _Place()
        self._counts: dict[tuple[str, ...], int] = {(): 0}
        self._boot = _Boot()
        self._status = True
        self._steps = 0
        self._calls = 0
        prefix = path.rpartition("/")[0]
        self._variables = {
            **dict.fromkeys(_FEATURES, "y"),
            "grub_platform": "xen",
            "grub_cpu": "x86_64",
            "prefix": prefix,
            "config_file": path,
            "config_directory": prefix,
            "menuentry_id_option": "--id",
        }

    def run(self, text: str) -> Menu:
        self._execute(parse(text))
        for choice in self._choices:
            self._choose(choice)
        menu, variables = self._menu, self._variables
        menu.entries = [choice.entry for choice in self._choices]
        menu.default = variables.get("default") or "0"
        menu.fallback = variables.get("fallback", "").split()
        menu.timeout_s = _timeout(variables.get("timeout"))
        return menu

    def _choose(self, choice: _Choice) -> None:
        """Run an entry's commands, and keep what they load."""
        if choice.entry.kernel is not None:
            return
        self._boot = _Boot()
        kept, self._variables = self._variables, {**self._variables, **choice.variables}
        self._variables["chosen"] = choice.entry.title
        self._arguments = choice.arguments
        try:
            self._execute(choice.body)
            _load(choice.entry, self._boot)
        except ImageError as error:
            choice.entry.note = str(error)
        finally:
            self._variables, self._arguments = kept, []

    def _execute(self, statements: list[Statement]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, statement: Statement) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise ImageError("the configuration does not come to an end")
        match statement:
            case Command():
                self._command(statement)
            case If():
                self._if(statement)
            case Loop():
                self._holds(statement.condition)
                while self._status != statement.until:
                    self._execute(statement.body)
                    self._statement(Command([]))  # an empty body counts, too
                    self._holds(statement.condition)
                self._status = True
            case For():
                for value in self._expand(statement.words):
                    self._set(statement.name, value)
                    self._execute(statement.body)
            case Function():
                self._functions[statement.name] = statement.body
            case Chain():
                if self._status == (statement.operator == "&&"):
                    self._statement(statement.statement)

    def _if(self, statement: If) -> None:
        for condition, body in statement.branches:
            if self._holds(condition):
                self._execute(body)
                return
        self._execute(statement.otherwise)

    def _holds(self, condition: list[Statement]) -> bool:
        self._execute(condition)
        return self._status

    def _expand(self, words: list[Token]) -> list[str]:
        """Words with their variables' values; an unquoted value makes as many words as it has."""
        result: list[str] = []
        for word in words:
            pieces, there = [""], False
            for part in word.parts:
                text = self._value(part.text) if part.variable else part.text
                if part.quoted or not part.variable:
                    pieces[-1] += text
                    there = True
                    continue
                values = text.split()
                there = there or bool(values)
                if values:
                    pieces[-1] += values[0]
                    pieces += values[1:]
            if any(len(piece) > VALUE_CHARS_MAX for piece in pieces):
                raise ImageError("a word of the configuration is too long")
            result += pieces if there else []
            if len(result) > VALUE_CHARS_MAX:
                raise ImageError("a command of the configuration is too long")
        return result

    def _value(self, name: str) -> str:
        match name:
            case "?":
                return "0" if self._status else "1"
            case "#":
                return str(len(self._arguments))
            case "*" | "@":
                return " ".join(self._arguments)
        if name.isdigit() and len(name) < 4:
            index = int(name) - 1
            return self._arguments[index] if 0 <= index < len(self._arguments) else ""
        return self._variables.get(name, "")

    def _set(self, name: str, value: str) -> None:
        if len(value) > VALUE_CHARS_MAX or len(self._variables) > VALUE_CHARS_MAX:
            raise ImageError("a variable of the configuration is too long")
        self._variables[name] = value

    def _command(self, command: Command) -> None:
        words = self._expand(command.words)
        if not words:
            return
        name, *arguments = words
        if name in self._functions:
            self._call(self._functions[name], arguments)
        elif name in ("menuentry", "submenu"):
            self._menu_command(name, arguments, command.block or [])
        elif name in _DONE or name in _FAILING:
            self._status = name in _DONE
        elif name in _COMMANDS:
            self._status = _COMMANDS[name](self, arguments) is not False
        elif "=" in name and not arguments and name.partition("=")[0].isidentifier():
            self._do_set([name])
            self._status = True
        else:
            self._note(f"the command {name[:40]} is not known")
            self._status = False

    def _call(self, body: list[Statement], arguments: list[str]) -> None:
        kept, self._arguments = self._arguments, arguments
        with _Deeper(self):
            self._execute(body)
        self._arguments = kept

    def _menu_command(self, name: str, arguments: list[str], body: list[Statement]) -> None:
        title, identifier, rest = _menu_words(arguments)
        number = self._counts[self._place.numbers]
        self._counts[self._place.numbers] += 1
        names = frozenset({title, identifier} - {""})
        place = _Place((*self._place.numbers, str(number)), (*self._place.names, names))
        if len(self._choices) >= ENTRIES_MAX or len(self._counts) >= ENTRIES_MAX:
            raise ImageError(f"the configuration has more than {ENTRIES_MAX} entries")
        self._status = True
        if name == "menuentry":
            entry = Entry(title, names=_paths(place.names), numbers=">".join(place.numbers))
            self._choices.append(_Choice(entry, body, [title, *rest], {}))
            return
        kept, self._place = self._place, place
        variables, self._variables = self._variables, dict(self._variables)
        first = len(self._choices)
        self._counts[place.numbers] = 0
        with _Deeper(self):
            self._execute(body)
        changed = {k: v for k, v in self._variables.items() if variables.get(k) != v}
        for choice in self._choices[first:]:
            choice.variables = {**changed, **choice.variables}
        self._place, self._variables = kept, variables

    def deepen(self, by: int) -> None:
        """Count calls within calls."""
        self._calls += by
        if self._calls > CALLS_MAX:
            raise ImageError("the configuration calls itself too often")

    def _note(self, text: str) -> None:
        if len(self._menu.notes) < NOTES_MAX and text not in self._menu.notes:
            self._menu.notes.append(text)

    # What follows are GRUB's commands. False is failure.

    def _do_set(self, arguments: list[str]) -> None:
        for argument in arguments[:1]:
            name, _, value = argument.partition("=")
            self._set(name, value)

    def _do_unset(self, arguments: list[str]) -> None:
        for name in arguments:
            self._variables.pop(name, None)

    def _do_test(self, arguments: list[str]) -> bool:
        return grub_test.holds(arguments, self._exists)

    def _do_bracket(self, arguments: list[str]) -> bool:
        return self._do_test(arguments[:-1] if arguments[-1:] == ["]"] else arguments)

    def _do_not(self, arguments: list[str]) -> bool:
        return not arguments

    def _exists(self, path: str, kind: str) -> bool:
        where = self._file(path)
        parent, _, name = where.path.rstrip("/").rpartition("/")
        there = name in self._disks.names(where.volume, parent or "/")
        if kind == "d":
            return bool(self._disks.names(where.volume, where.path))
        if kind == "s" and there:
            return bool(self._disks.read(where.volume, where.path))
        return there

    def _do_search(self, arguments: list[str]) -> bool:
        kind, variable = "file", "root"
        values: list[str] = []
        words = iter(arguments)
        for word in words:
            match word:
                case "-u" | "--fs-uuid":
                    kind = "uuid"
                case "-l" | "--label" | "--fs-label":
                    kind = "label"
                case "-f" | "--file":
                    kind = "file"
                case "-s" | "--set" | "-h" | "--hint":
                    following = next(words, "")
                    if word in ("-s", "--set"):
                        variable, values = _set_word(variable, following, values)
                case _ if word.startswith("--set="):
                    variable = word[6:]
                case _ if not word.startswith("-"):
                    values.append(word)
        for value in values[:1]:
            return self._found(kind, value, variable)
        return False

    def _found(self, kind: str, value: str, variable: str) -> bool:
        volume = self._disks.search(kind, value)
        if volume is None:
            self._note(f"search: no volume with the {kind} {value[:60]}")
            return False
        self._set(variable, f"volume{volume}")
        return True

    def _search_by(self, kind: str, arguments: list[str]) -> bool:
        return (
            self._found(kind, arguments[0], (arguments[1:] or ["root"])[0]) if arguments else False
        )

    def _do_load_env(self, arguments: list[str]) -> bool:
        path, wanted = f"{self._value('prefix')}/grubenv", []
        words = iter(arguments)
        for word in words:
            if word in ("-f", "--file"):
                path = next(words, path)
            elif not word.startswith("-"):
                wanted.append(word)
        where = self._file(path)
        text = self._disks.read(where.volume, where.path)
        if text is None or not text.startswith(ENVIRONMENT_SIGNATURE):
            return False
        for line in text.splitlines():
            name, equals, value = line.partition("=")
            if equals and not name.startswith("#") and (not wanted or name in wanted):
                self._set(name, value.replace("\\\\", "\\"))
        if self._variables.get("next_entry"):
            self._note("grub-reboot's next_entry is followed; the guest has to remove it")
        return True

    def _do_configfile(self, arguments: list[str]) -> bool:
        if not arguments:
            return False
        where = self._file(arguments[0])
        text = self._disks.read(where.volume, where.path)
        if text is None:
            self._note(f"{arguments[0][:80]} is not there")
            return False
        with _Deeper(self):
            self._execute(parse(text))
        return True

    def _do_blscfg(self, arguments: list[str]) -> bool:
        volume = self._root_volume("root")
        directory = self._variables.get("blsdir", "")
        for where in (directory, "/loader/entries", "/boot/loader/entries"):
            snippets = bls.read_entries(self._disks, volume, where, self._value) if where else []
            for snippet in snippets:
                number = self._counts[self._place.numbers]
                self._counts[self._place.numbers] += 1
                snippet.numbers = ">".join((*self._place.numbers, str(number)))
                self._choices.append(_Choice(snippet, [], [], {}))
            if snippets:
                return True
        self._note("blscfg: there are no entries")
        return False

    def _do_linux(self, arguments: list[str]) -> bool:
        if not arguments:
            return False
        self._boot.kernel = self._file(arguments[0])
        self._boot.args = " ".join(arguments[1:])
        return True

    def _do_initrd(self, arguments: list[str]) -> bool:
        self._boot.ramdisks = [
            self._file(path.removeprefix("newc:")) for path in arguments if path != "--nounzip"
        ]
        return True

    def _do_multiboot(self, arguments: list[str]) -> bool:
        self._boot.modules = []
        return bool(arguments)

    def _do_module(self, arguments: list[str]) -> bool:
        words = [word for word in arguments if word != "--nounzip"]
        if self._boot.modules is None or not words:
            return False
        self._boot.modules.append((self._file(words[0]), " ".join(words[1:])))
        return True

    def _do_chainloader(self, arguments: list[str]) -> bool:
        raise ImageError("it starts another boot loader")

    def _file(self, path: str) -> File:
        """What a path of GRUB's means: (device)/path, or a path on $root."""
        if path.startswith("("):
            device, _, path = path[1:].partition(")")
            volume = self._device(device)
        else:
            volume = self._root_volume("root")
        return File(volume, path if path.startswith("/") else f"/{path}")

    def _root_volume(self, variable: str) -> int:
        return self._device(self._variables.get(variable, ""))

    def _device(self, name: str) -> int:
        if name.startswith("volume") and name[6:].isdigit() and len(name) < 12:
            return int(name[6:])
        volume = self._disks.device(name) if name else None
        return self._volume if volume is None else volume


class _Deeper:
    """One call more, for a while."""

    def __init__(self, grub: _Grub2) -> None:
        self._grub = grub

    def __enter__(self) -> None:
        self._grub.deepen(1)

    def __exit__(self, *_: object) -> None:
        self._grub.deepen(-1)


_COMMANDS = {
    "set": _Grub2._do_set,
    "unset": _Grub2._do_unset,
    "test": _Grub2._do_test,
    "[": _Grub2._do_bracket,
    "!": _Grub2._do_not,
    "search": _Grub2._do_search,
    "search.fs_uuid": lambda grub, words: grub._search_by("uuid", words),
    "search.fs_label": lambda grub, words: grub._search_by("label", words),
    "search.file": lambda grub, words: grub._search_by("file", words),
    "load_env": _Grub2._do_load_env,
    "configfile": _Grub2._do_configfile,
    "source": _Grub2._do_configfile,
    ".": _Grub2._do_configfile,
    "blscfg": _Grub2._do_blscfg,
    **dict.fromkeys(("linux", "linux16", "linuxefi", "kernel"), _Grub2._do_linux),
    **dict.fromkeys(("initrd", "initrd16", "initrdefi"), _Grub2._do_initrd),
    **dict.fromkeys(("multiboot", "multiboot2", "xen_hypervisor"), _Grub2._do_multiboot),
    **dict.fromkeys(("module", "module2", "xen_module"), _Grub2._do_module),
    "chainloader": _Grub2._do_chainloader,
}


def _set_word(variable: str, following: str, values: list[str]) -> tuple[str, list[str]]:
    """`--set` may have the variable behind it, or what is searched for."""
    return (following, values) if following.isidentifier() else (variable, [*values, following])


def _menu_words(arguments: list[str]) -> tuple[str, str, list[str]]:
    """(title, id, other arguments) of menuentry and submenu."""
    title, identifier, rest = None, "", []
    words = iter(arguments)
    for word in words:
        if word == "--id":
            identifier = next(words, "")
        elif word.startswith("--id="):
            identifier = word[5:]
        elif word in ("--class", "--users", "--hotkey", "--source"):
            next(words, "")
        elif word.startswith("--"):
            continue
        elif title is None:
            title = word
        else:
            rest.append(word)
    return title or "", identifier, rest


def _paths(names: tuple[frozenset[str], ...]) -> frozenset[str]:
    """What a default may call an entry: by title or by id at each step, or by its own name only."""
    paths = {""}
    for level in names[:6]:
        paths = {f"{path}>{name}" if path else name for path in paths for name in level}
    return frozenset(paths) | names[-1]


def _load(entry: Entry, boot: _Boot) -> None:
    """Take what was loaded; for Xen's own entries the kernel is the first module, as in pygrub."""
    if boot.modules:
        (entry.kernel, entry.args), *rest = boot.modules
        entry.ramdisks = [file for file, _ in rest[:1]]
    elif boot.kernel is not None:
        entry.kernel, entry.args, entry.ramdisks = boot.kernel, boot.args, boot.ramdisks
    else:
        entry.note = "it loads no kernel"


def _timeout(text: str | None) -> float | None:
    """Seconds; -1 waits for ever, and so does a menu without a time-out in GRUB."""
    try:
        seconds = float(text) if text else 5.0
    except ValueError:
        return 5.0
    return None if seconds < 0 else min(seconds, 3600.0)
