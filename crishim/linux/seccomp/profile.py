"""A seccomp profile as data, and its reading from the JSON that Docker, Kubernetes and OCI users write.

Both forms are understood: the runtime-spec's (`architectures`) and Docker's (`archMap`, `includes`, `excludes`,
`name`). Out of scope: the filter program (`compiler`), the default profile (`default`).

Invariant: a profile that is not understood to the last key is refused, and the message names the key: a misspelt
`args` would otherwise allow more than its author meant.

Sources: OCI runtime-spec `config-linux.md#seccomp`, Docker's profile format, seccomp(2).
"""

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crishim.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from crishim.linux.arch import ARCHES
from crishim.words import unreadable

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
}
"""Name → SECCOMP_RET_* (linux/seccomp.h). SCMP_ACT_NOTIFY is not among them: it needs a listener."""

OPERATORS = frozenset(
    f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
)  # fmt: skip
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_WITH_DATA = {ACTIONS["SCMP_ACT_ERRNO"], ACTIONS["SCMP_ACT_TRACE"]}
_MAX_SIZE = 4 << 20


@dataclass(frozen=True, slots=True)
class Arg:
    """One condition on an argument: `op` is like `SCMP_CMP_EQ`; MASKED_EQ means `arg & value == value_two`."""

    index: int
    value: int
    value_two: int
    op: str


@dataclass(frozen=True, slots=True)
class Condition:
    """When a rule counts: capabilities of the container, architectures (OCI names), at least this kernel."""

    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens for some calls; `action` is the whole SECCOMP_RET_* value, its data included."""

    names: tuple[str, ...]
    action: int
    args: tuple[Arg, ...] = ()
    includes: Condition = Condition()
    excludes: Condition = Condition()


@dataclass(frozen=True, slots=True)
class Profile:
    """A whole profile.

    Args:
        default_action: SECCOMP_RET_* value for calls without a rule.
        architectures: names like `SCMP_ARCH_X86_64`; empty means the native one with those it runs too.
        rules: in order; see `compiler` for which one wins.
        flags: SECCOMP_FILTER_FLAG_* bits for seccomp(2).
    """

    default_action: int
    architectures: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    flags: int = 0


def load_profile(path: str) -> Profile:
    """Read a Localhost profile.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no profile; the field is the path of the key that is wrong.
        UnimplementedError: it wants a listener, which is not supported yet.
    """
    try:
        # what is no file may have no end, or no beginning: a pipe is waited for
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgumentError("", f"seccomp profile {path} is no regular file")
            data = file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        raise NotFoundError(f"seccomp profile {path} does not exist") from None
    except OSError as error:
        raise InvalidArgumentError("", f"seccomp profile {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InvalidArgumentError("", f"seccomp profile {path!r} is no path") from None
    if len(data) > _MAX_SIZE:
        raise InvalidArgumentError("", f"seccomp profile {path} is larger than {_MAX_SIZE} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError("", f"seccomp profile {path} {unreadable(error)}") from None
    return parse_profile(document, path)


def parse_profile(document: Any, where: str) -> Profile:
    """Return the profile that a JSON value describes.

    Args:
        document: the value.
        where: what to call it in errors, like its path.
    """
    reader = _Reader(where)
    top = reader.fields(
        document,
        "",
        {"defaultAction", "defaultErrnoRet", "architectures", "archMap", "syscalls", "flags", "listenerPath"}
        | {"listenerMetadata"},
    )
    if top.get("listenerPath") or top.get("listenerMetadata"):
        raise reader.absent("listenerPath", "notification listeners are not supported yet; remove the key")
    default = reader.action(top.get("defaultAction"), "defaultAction", top.get("defaultErrnoRet"), "defaultErrnoRet")
    architectures = reader.architectures(top.get("architectures"), top.get("archMap"))
    rules = tuple(
        reader.rule(rule, f"syscalls[{index}]") for index, rule in enumerate(reader.array(top, "syscalls", "syscalls"))
    )
    flags = 0
    for index, name in enumerate(reader.array(top, "flags", "flags")):
        if not isinstance(name, str) or name not in FLAGS:
            raise reader.wrong(f"flags[{index}]", f"{name!r} is none of {', '.join(FLAGS)}")
        flags |= FLAGS[name]
    return Profile(default, architectures, rules, flags)


class _Reader:
    """Reads a profile's parts; errors carry the document's name and the key's path."""

    def __init__(self, where: str) -> None:
        self._where = where

    def absent(self, key: str, problem: str) -> UnimplementedError:
        return UnimplementedError(f"{self._where}: {key}: {problem}")

    def wrong(self, key: str, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._where}: {key}" if key else self._where, problem)

    def fields(self, value: Any, key: str, known: set[str]) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(key, "must be an object")
        for name in value:
            if name not in known and name not in {"comment", "comments"}:
                raise self.wrong(f"{key}.{name}" if key else name, f"unknown key; known are {', '.join(sorted(known))}")
        return value

    def array(self, parent: Mapping[str, Any], name: str, key: str) -> list[Any]:
        value = parent.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "must be an array")
        return value

    def strings(self, parent: Mapping[str, Any], name: str, key: str) -> tuple[str, ...]:
        items = self.array(parent, name, key)
        for index, item in enumerate(items):
            if not isinstance(item, str) or not item:
                raise self.wrong(f"{key}[{index}]", "must be a name")
        return tuple(items)

    def number(self, value: Any, key: str, limit: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise self.wrong(key, f"{value!r} is no whole number within 0..{limit}")
        return value

    def action(self, name: Any, key: str, data: Any, data_key: str) -> int:
        if name == "SCMP_ACT_NOTIFY":
            raise self.absent(key, "SCMP_ACT_NOTIFY needs a listener and is not supported yet; use SCMP_ACT_ERRNO")
        if not isinstance(name, str) or name not in ACTIONS:
            raise self.wrong(key, f"{name!r} is none of {', '.join(ACTIONS)}")
        action = ACTIONS[name]
        if data is not None:
            number = self.number(data, data_key, 0xFFFF if action not in _WITH_DATA else 4095)
            if action in _WITH_DATA:
                return action | number
        return action | errno.EPERM if action in _WITH_DATA else action

    def architectures(self, plain: Any, mapped: Any) -> tuple[str, ...]:
        known = {arch.scmp for arch in ARCHES.values()}
        names = list(self.strings({"architectures": plain}, "architectures", "architectures"))
        for index, entry in enumerate(self.array({"archMap": mapped}, "archMap", "archMap")):
            key = f"archMap[{index}]"
            fields = self.fields(entry, key, {"architecture", "subArchitectures"})
            main = fields.get("architecture")
            if not isinstance(main, str):
                raise self.wrong(f"{key}.architecture", "must be a name")
            names += [main, *self.strings(fields, "subArchitectures", f"{key}.subArchitectures")]
        for name in names:
            if not name.startswith("SCMP_ARCH_"):
                raise self.wrong("architectures", f"{name!r} is no name like SCMP_ARCH_X86_64")
        # Other machines' names are legal and mean nothing here.
        kept = tuple(dict.fromkeys(name for name in names if name in known))
        if names and not kept:
            raise self.wrong("architectures", f"none of {', '.join(names)} is an architecture that crishim runs on")
        return kept

    def rule(self, value: Any, key: str) -> Rule:
        known = {"name", "names", "action", "errnoRet", "args", "includes", "excludes"}
        fields = self.fields(value, key, known)
        names = self.strings(fields, "names", f"{key}.names")
        if "name" in fields:
            names = (*self.strings({"name": [fields["name"]]}, "name", f"{key}.name"), *names)
        if not names:
            raise self.wrong(f"{key}.names", "names no system call")
        action = self.action(fields.get("action"), f"{key}.action", fields.get("errnoRet"), f"{key}.errnoRet")
        args = tuple(
            self.arg(arg, f"{key}.args[{index}]") for index, arg in enumerate(self.array(fields, "args", f"{key}.args"))
        )
        includes = self.condition(fields.get("includes"), f"{key}.includes")
        excludes = self.condition(fields.get("excludes"), f"{key}.excludes")
        return Rule(names, action, args, includes, excludes)

    def arg(self, value: Any, key: str) -> Arg:
        fields = self.fields(value, key, {"index", "value", "valueTwo", "op"})
        op = fields.get("op")
        if not isinstance(op, str) or op not in OPERATORS:
            raise self.wrong(f"{key}.op", f"{op!r} is none of {', '.join(sorted(OPERATORS))}")
        return Arg(
            self.number(fields.get("index"), f"{key}.index", 5),
            self.number(fields.get("value"), f"{key}.value", (1 << 64) - 1),
            self.number(fields.get("valueTwo", 0), f"{key}.valueTwo", (1 << 64) - 1),
            op,
        )

    def condition(self, value: Any, key: str) -> Condition:
        if value is None:
            return Condition()
        fields = self.fields(value, key, {"caps", "arches", "minKernel"})
        version = None
        if fields.get("minKernel"):
            match = re.fullmatch(r"(\d+)\.(\d+)", str(fields["minKernel"]))
            if match is None:
                raise self.wrong(f"{key}.minKernel", f"{fields['minKernel']!r} is no version like 4.8")
            version = (int(match[1]), int(match[2]))
        caps = self.strings(fields, "caps", f"{key}.caps")
        return Condition(caps, self.strings(fields, "arches", f"{key}.arches"), version)
