"""The daemon's log: structlog in a readable and in a JSON form, one line an event (a stack follows its line).

```
2026-11-25T10:32:47.123456Z info    crishim.pods  started  ms=2.1 rpc=StartContainer
```
Every part takes its logger by `structlog.get_logger("crishim.<part>")`; `rpc`, `pod` and `container` are bound as
context variables. Level, form and file change at run time. Invariants: what is below the level costs one comparison;
a log that cannot be written never fails a call, and one that nobody reads never holds one up: lines wait, and what is
too much is dropped, counted and told; no password, token or signature is written, wherever it stands.

Import this module before structlog: it keeps structlog from loading a console library (rich: 60 ms, 6 MB) that the
daemon never uses, where one happens to be installed.
"""

import atexit
import dataclasses
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

# None makes `import rich` within structlog fail as if it were not installed (import system, "The module cache").
_hidden = sys.modules.setdefault("rich", None) is None  # type: ignore[arg-type]

import structlog  # noqa: E402  after rich is hidden
from structlog.contextvars import merge_contextvars  # noqa: E402  as above

if _hidden:
    del sys.modules["rich"]

from crishim.outlet import Outlet  # noqa: E402  as above

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_SECRET_KEY = re.compile(r"passw|passwd|token|secret|credential|^auth$|authorization|cookie|signature", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(://[^/\s:@]*:)[^/\s@]+(?=@)"  # user:password in a URL
    r"|((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}"  # an Authorization header
    r"|([?&][\w.-]*(?:token|sig|signature|credential|secret|password|key)[\w.-]*=)[^&\s\"']+",  # a signed URL
    re.IGNORECASE,
)
_BARE = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")
HIDDEN = "***"


_MOST_WAITING = 1 << 20
_PATIENCE = 1.0
_PAUSE = 0.01


class Sink:
    """Where lines go: standard error or a file; lines of threads do not mix.

    A line goes out at once. Where it is not taken (a pipe that nobody reads, see `outlet`), it waits with all that come
    after it, and a thread that is there only then writes them when there is room. `dropped` counts the lines that were
    too much or could not be written at all; how many were lost is told when lines flow again.
    """

    def __init__(self) -> None:
        self.level = LEVELS["info"]
        self.json = False
        self.dropped = 0
        self._told = 0
        self._outlet: Outlet | None = None
        self._lock = threading.RLock()  # an object that goes while a line is written may have something to say
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._writer: threading.Thread | None = None
        self._watched: Outlet | None = None

    def open(self, path: str) -> None:
        """Write to a file from now on ("" is standard error); opens anew what was renamed. Raises OSError."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o640) if path else 2
        try:
            fresh = Outlet(descriptor)
        finally:
            if path:
                os.close(descriptor)
        with self._lock:
            old, self._outlet = self._outlet, fresh
            if old is not None and old is not self._watched:
                old.close()

    def write(self, text: str) -> None:
        """Write one event, now or later; a full disk or a closed pipe drops it."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._size + len(data) > _MOST_WAITING:
                self.dropped += 1
                return
            self._waiting.append(data)
            self._size += len(data)
            if self._writer is None and not self._flush():
                self._watch()

    def finish(self) -> None:
        """Give what waits a moment to be written, at the process's end."""
        writer = self._writer
        if writer is not None:
            writer.join(_PATIENCE)

    def _flush(self) -> bool:
        """Write what waits as far as it is taken; tell whether nothing waits any more."""
        try:
            if self._outlet is None:
                self._outlet = Outlet(2)
            while self._waiting:
                written = self._outlet.write(self._waiting[0])
                self._size -= written
                if written < len(self._waiting[0]):
                    self._waiting[0] = self._waiting[0][written:]
                    return False
                self._waiting.popleft()
                if not self._waiting and self.dropped != self._told:
                    self._tell()
        except OSError:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._size = 0
        return True

    def _tell(self) -> None:
        """Add how many lines were lost."""
        count, self._told = self.dropped - self._told, self.dropped
        line = render(_Output("crishim.log"), "warning", {"event": "lines of the log were lost", "count": count})
        self._waiting.append(line.encode())
        self._size += len(self._waiting[-1])

    def _watch(self) -> None:
        """Have a thread write what waits."""
        writer = threading.Thread(target=self._write_later, name="log", daemon=True)
        try:
            writer.start()
        except RuntimeError:  # no thread can be had; the next line tries again
            return
        self._writer = writer

    def _write_later(self) -> None:
        while True:
            with self._lock:
                if self._watched is not None and self._watched is not self._outlet:
                    self._watched.close()
                self._watched = self._outlet
            if self._watched is not None:
                self._watched.wait(_PATIENCE)
            with self._lock:
                if self._flush():
                    self._writer = self._watched = None
                    return
            time.sleep(_PAUSE)


SINK = Sink()


class _Output:
    """structlog's innermost logger: carries the name of the part, writes what the processors made."""

    def __init__(self, name: str = "crishim") -> None:
        self.name = name

    def msg(self, text: str) -> None:
        SINK.write(text)

    debug = info = warning = error = critical = msg


class Logger(structlog.BoundLoggerBase):
    """A bound logger that looks at the level first; the level can change at any time."""

    def debug(self, event: str, **fields: Any) -> None:
        """Log what only a developer wants to see."""
        if SINK.level <= 10:
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log what happened."""
        if SINK.level <= 20:
            self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log what somebody should look at when there is time."""
        if SINK.level <= 30:
            self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log what went wrong."""
        self._proxy_to_logger("error", event, **fields)

    def critical(self, event: str, **fields: Any) -> None:
        """Log what ends the daemon."""
        self._proxy_to_logger("critical", event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the stack of the exception at hand."""
        self._proxy_to_logger("error", event, **{"exc_info": True, **fields})


def render(logger: Any, method: str, fields: MutableMapping[str, Any]) -> str:
    """Turn an event into its line; structlog's last processor."""
    now = time.time_ns()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
    moment = f"{stamp}.{now // 1000 % 1_000_000:06}Z"
    event = str(fields.pop("event", ""))
    stack = _stack(fields.pop("exc_info", None), fields.pop("stack", ""))
    name = getattr(logger, "name", "crishim")
    shown = {key: _shown(key, value) for key, value in fields.items() if value is not None}
    if SINK.json:
        line: dict[str, Any] = {"time": moment, "level": method, "logger": name, "event": _text(event), **shown}
        if stack:
            line["stack"] = stack
        return json.dumps(line, ensure_ascii=False, default=str) + "\n"
    pairs = "".join(f" {key}={_plain(value)}" for key, value in shown.items())
    return f"{moment} {method:7} {name}  {_one_line(_text(event))} {pairs}".rstrip() + "\n" + stack


def configure(level: str, form: str, path: str = "") -> None:
    """Set up or change the log; may be called again at any time.

    Args:
        level: least level that is written, a key of `LEVELS`.
        form: `console` or `json`.
        path: file to append to, "" for standard error.

    Raises:
        OSError: the file cannot be opened; everything stays as it was.
    """
    SINK.open(path)
    SINK.level = LEVELS[level]
    SINK.json = form == "json"
    if not structlog.is_configured():
        structlog.configure(
            processors=[merge_contextvars, render],
            wrapper_class=Logger,
            logger_factory=_Output,
            cache_logger_on_first_use=True,
        )
        _catch()


def get_logger(name: str) -> Any:
    """Return the logger of a part, named like `crishim.pods`."""
    return structlog.get_logger(name)


def _stack(exc_info: Any, stack: str) -> str:
    """Return the text of an exception (given as structlog does: True, an exception, or sys.exc_info()'s triple)."""
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    text = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
    return _text(text + stack)


def _shown(key: str, value: Any) -> Any:
    """Return a value as it may be written: secrets hidden, and only what JSON has."""
    if _SECRET_KEY.search(key) and not isinstance(value, bool | int | float):
        return HIDDEN
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return _text(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, Mapping):
        return {str(name): _shown(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown("", inner) for inner in value]
    if dataclasses.is_dataclass(value):
        return {f.name: _shown(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)}
    return _text(str(value))


def _text(text: str) -> str:
    """Return text without secrets; the search is left out where there cannot be any."""
    if "://" in text or "?" in text or "Bearer " in text or "Basic " in text:
        return _SECRET_TEXT.sub(lambda found: f"{found[1] or found[2] or found[3]}{HIDDEN}", text)
    return text


def _plain(value: Any) -> str:
    """Return a value for the console: as it is where that is unambiguous, else quoted as in JSON."""
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")


class _Bridge(logging.Handler):
    """Hands what libraries write by `logging` to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        level = record.levelname.lower()
        log = structlog.get_logger(record.name)
        getattr(log, level if level in LEVELS else "warning")(record.getMessage(), exc_info=record.exc_info)


def _catch() -> None:
    """Catch what would otherwise go past the log: the logging module, and exceptions of threads and of the process."""
    atexit.register(SINK.finish)
    logging.root.handlers[:] = [_Bridge()]
    logging.root.setLevel(logging.WARNING)
    log = structlog.get_logger("crishim")
    sys.excepthook = lambda kind, error, trace: log.critical("unhandled", exc_info=(kind, error, trace))
    sys.unraisablehook = lambda args: log.error(
        "unhandled while an object went",
        message=args.err_msg,
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )
    threading.excepthook = lambda args: log.error(
        "unhandled in a thread",
        thread=args.thread.name if args.thread else "",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )
