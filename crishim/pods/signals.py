"""Signal names to numbers: the CRI's (`SIGRTMINPLUS3`), the image-spec's (`SIGRTMIN+3`, `TERM`, `15`).

Pure. Numbers are those of the host's architecture (signal(7)); real-time signals count from glibc's SIGRTMIN, 34,
and from SIGRTMAX, 64, as programs in images understand them.
Source: CRI `Signal` enum; OCI image-spec config.md, `StopSignal`.
"""

import re
import signal

from crishim.errors import InvalidArgumentError

RTMIN = 34
RTMAX = 64
DEFAULT = "SIGTERM"

_NAMES: dict[str, int] = {
    name: int(value) for name, value in signal.Signals.__members__.items() if not name.startswith("SIGRT")
}
_REALTIME = re.compile(r"SIGRT(MIN|MAX)(?:(?:PLUS|MINUS|[+-])(\d{1,2}))?")


def number(name: str, field: str) -> int:
    """Return the number of a signal name or of a decimal number.

    Raises:
        InvalidArgumentError: no such signal; `field` is named.
    """
    found = _parse(name)
    if found is None:
        raise InvalidArgumentError(
            field, f"{name!r} is no signal; a name like SIGTERM or a number from 1 to 64 is wanted"
        )
    return found


def cri_name(name: str) -> str:
    """Return the CRI enum's name for any accepted spelling, "" if there is none (for ContainerStatus).

    A name that the enum has is returned as it came, aliases like SIGPOLL too.
    """
    if name in _NAMES:
        return name
    found = _parse(name)
    if found is None:
        return ""
    if found >= RTMIN:
        if found == RTMIN:
            return "SIGRTMIN"
        if found == RTMAX:
            return "SIGRTMAX"
        middle = RTMIN + 15
        return f"SIGRTMINPLUS{found - RTMIN}" if found <= middle else f"SIGRTMAXMINUS{RTMAX - found}"
    return signal.Signals(found).name if found in _NAMES.values() else ""


def _parse(name: str) -> int | None:
    text = name.strip().upper()
    if text.isdecimal():
        value = int(text)
        return value if 1 <= value <= RTMAX else None
    if not text.startswith("SIG"):
        text = f"SIG{text}"
    if text in _NAMES:
        return _NAMES[text]
    match = _REALTIME.fullmatch(text)
    if match is None:
        return None
    offset = int(match[2] or 0)
    value = RTMIN + offset if match[1] == "MIN" else RTMAX - offset
    return value if RTMIN <= value <= RTMAX else None
