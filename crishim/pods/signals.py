"""Signal names to numbers: the CRI's (`SIGRTMINPLUS3`), the image-spec's (`SIGRTMIN+3`, `TERM`, `15`).

Pure. Numbers are those of the host's architecture (signal(7)); real-time signals count from glibc's SIGRTMIN, 34,
and from SIGRTMAX, 64, as programs in images understand them.
Source: CRI `Signal` enum; OCI image-spec config.md, `StopSignal`.
"""

import re
import signal

from crishim.problems import Problems
from crishim.words import number

RTMIN = 34
RTMAX = 64
DEFAULT = "SIGTERM"
TERM = int(signal.SIGTERM)

_NAMES: dict[str, int] = {
    name: int(value) for name, value in signal.Signals.__members__.items() if not name.startswith("SIGRT")
}
_REALTIME = re.compile(r"SIGRT(MIN|MAX)(?:(?:PLUS|MINUS|[+-])(\d{1,2}))?")


def check(problems: Problems, field: str, name: str) -> None:
    """Note a name that is no signal."""
    if parse(name) is None:
        problems.add(field, f"must be a signal's name like SIGTERM or a number from 1 to 64, is {name!r}")


def parse(name: str) -> int | None:
    """Return the number of a signal's name or of a decimal number; None if there is no such signal."""
    text = name.strip().upper()
    value = number(text)
    if value is not None:
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


def cri_name(name: str) -> str:
    """Return the CRI enum's name for any accepted spelling, "" if there is none (for ContainerStatus).

    A name that the enum has is returned as it came, aliases like SIGPOLL too.
    """
    if name in _NAMES:
        return name
    found = parse(name)
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
