"""What happens around every RPC, in layers: deadline → log → metric → error map → the method.

```
caller ─► deadline   a call that arrives after its deadline is refused unrun
          └► log     binds `rpc` for every line below; one line at the end, at a level that fits; errors only here
             └► metric   count, latency and calls in flight by method and code
                └► error map   any exception becomes a Refusal: a status code and one sentence
                   └► decode, method, encode (`methods.py`)
```
grpc's own interceptors build a handler per call; these wrap each method once, when the server is made, which costs a
list of 110 pods nothing. A handler takes the request's bytes and gives the answer's. Cancellation (the caller left or
its deadline passed) runs through all layers untouched, and is logged and counted on its way: the pods keep what
must not stop in tasks of their own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from grpc import StatusCode
from structlog.contextvars import bind_contextvars

from crishim.server.calls import Call
from crishim.server.errors import Refusal, refusal
from crishim.server.unimplemented import SENTENCES

Handler = Callable[[bytes, Call], Awaitable[bytes]]

QUIET_PREFIXES = ("List", "Stream")
QUIET = {
    "Version",
    "Status",
    "RuntimeConfig",
    "PodSandboxStatus",
    "ContainerStatus",
    "PodSandboxStats",
    "ContainerStats",
    "ImageStatus",
    "ImageFsInfo",
    "ExecSync",
    "Images.List",
}
"""RPCs that are repeated all day long and change nothing: their success is worth a line at debug only."""

OUR_FAULT = {StatusCode.INTERNAL, StatusCode.DATA_LOSS}

log: structlog.stdlib.BoundLogger = structlog.get_logger("crishim.rpc")


class RpcObserver(Protocol):
    """What the metrics want to know of RPCs."""

    def rpc_started(self, method: str) -> None:
        """A call of `method` began."""

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        """A call that began has ended with the status code of this name (`OK`, `NOT_FOUND`…)."""


def is_quiet(method: str) -> bool:
    """Tell whether this RPC's successes, and that it is absent, are logged at debug only."""
    return method in QUIET or method in SENTENCES or method.startswith(QUIET_PREFIXES)


def intercept(method: str, handler: Handler, observer: RpcObserver) -> Handler:
    """Return `handler` with all layers around it."""
    return with_deadline(with_log(method, with_metric(method, with_errors(handler), observer)))


def with_deadline(inner: Handler) -> Handler:
    """Refuse what comes too late."""

    async def run(request: bytes, call: Call) -> bytes:
        if call.expired():
            raise Refusal(StatusCode.DEADLINE_EXCEEDED, f"{call.method}: the deadline had passed before the call began")
        return await inner(request, call)

    return run


def with_log(method: str, inner: Handler) -> Handler:
    """Bind the RPC's name and write one line when it ends."""
    quiet = is_quiet(method)

    async def run(request: bytes, call: Call) -> bytes:
        bind_contextvars(rpc=method)
        try:
            answer = await inner(request, call)
        except Refusal as ended:
            _log_refusal(call, ended, quiet)
            raise
        except asyncio.CancelledError:
            log.info("deadline passed" if call.expired() else "caller left", **call.subject, ms=_ms(call))
            raise
        if quiet:
            log.debug("done", **call.subject, ms=_ms(call))
        else:
            log.info("done", **call.subject, ms=_ms(call))
        return answer

    return run


def with_metric(method: str, inner: Handler, observer: RpcObserver) -> Handler:
    """Count and time."""

    async def run(request: bytes, call: Call) -> bytes:
        observer.rpc_started(method)
        code = "OK"
        try:
            return await inner(request, call)
        except Refusal as ended:
            code = ended.code.name
            raise
        except asyncio.CancelledError:
            code = "DEADLINE_EXCEEDED" if call.expired() else "CANCELLED"
            raise
        finally:
            observer.rpc_finished(method, code, call.seconds())

    return run


def with_errors(inner: Handler) -> Handler:
    """Make a Refusal of every exception."""

    async def run(request: bytes, call: Call) -> bytes:
        try:
            return await inner(request, call)
        except Exception as error:
            raise refusal(error) from error

    return run


def _log_refusal(call: Call, ended: Refusal, quiet: bool) -> None:
    fields: dict[str, object] = {**call.subject, "code": ended.code.name, "ms": _ms(call)}
    notes = getattr(ended.error, "__notes__", None)
    if notes:
        fields["notes"] = notes
    if ended.incident:
        log.error("internal error", **fields, incident=ended.incident, exc_info=ended.error)
    elif ended.code in OUR_FAULT or notes:
        log.error(ended.details, **fields)
    elif quiet and ended.code in {StatusCode.NOT_FOUND, StatusCode.UNIMPLEMENTED}:
        log.debug(ended.details, **fields)
    else:
        log.warning(ended.details, **fields)


def _ms(call: Call) -> float:
    return round(call.seconds() * 1000, 2)
