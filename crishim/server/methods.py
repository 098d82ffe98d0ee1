"""From a service's descriptor and a servicer to gRPC handlers: decode, call, encode, with the interceptors around.

A servicer's method for `ListPodSandbox` is called `list_pod_sandbox`; it takes the request message and gives the
answer as a message, or as bytes already encoded (the lists do). Messages are decoded and encoded here and not by grpc,
so that bytes that are no message and answers that cannot be encoded pass the interceptors like any other error. RPCs
that this version does not have answer Unimplemented with the sentence of `unimplemented.py`.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from structlog.contextvars import bind_contextvars

from crishim.errors import InvalidArgumentError, ResourceExhaustedError, UnimplementedError
from crishim.ids import short
from crishim.server.calls import Call, Calls
from crishim.server.errors import Refusal
from crishim.server.interceptors import Handler, RpcObserver, intercept
from crishim.server.unimplemented import SENTENCES

Answer = Message | bytes
Method = Callable[[Any], Awaitable[Answer]]

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes; what kubelet and crictl accept, instead of grpc's 4 MiB."""

SUBJECTS = {"pod_sandbox_id": "pod", "container_id": "container"}
"""Fields of requests and answers that say what a call is about, and their names in the log."""


def snake(name: str) -> str:
    """Return the servicer's name of an RPC: `ListPodSandbox` → `list_pod_sandbox`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def service_handler(
    service: ServiceDescriptor, servicer: object, calls: Calls, observer: RpcObserver
) -> "grpc.GenericRpcHandler[Any, Any]":
    """Return the handler of a whole service."""
    handlers = {method.name: _method_handler(method, servicer, calls, observer) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _method_handler(
    method: MethodDescriptor, servicer: object, calls: Calls, observer: RpcObserver
) -> "grpc.RpcMethodHandler[Any, Any]":
    function: Method | None = getattr(servicer, snake(method.name), None)
    inner = _absent(method.name) if function is None else _present(method, function)
    handler = intercept(method.name, inner, observer)

    async def unary(request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        call = Call(method.name, context.time_remaining(), context.write)
        calls.add(call)
        try:
            return await handler(request, call)
        except Refusal as ended:
            # Not context.abort: it keeps the exception that it raises, with this frame, until the collector comes.
            context.set_code(ended.code)
            context.set_details(ended.details)
            return b""
        finally:
            calls.discard(call)

    async def stream(request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        await unary(request, context)

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(unary)


def _absent(name: str) -> Handler:
    sentence = SENTENCES[name]

    async def run(_request: bytes, _call: Call) -> bytes:
        raise UnimplementedError(sentence)

    return run


def _present(method: MethodDescriptor, function: Method) -> Handler:
    kind = GetMessageClass(method.input_type)
    asked = _subject_fields(method.input_type.fields_by_name)
    given = _subject_fields(method.output_type.fields_by_name)

    async def run(request: bytes, call: Call) -> bytes:
        try:
            message = kind.FromString(request)
        except DecodeError:
            raise InvalidArgumentError("", f"the request is no valid {method.input_type.full_name}") from None
        for field, name in asked:
            call.subject[name] = short(getattr(message, field))
        if asked:
            bind_contextvars(**call.subject)
        answer = await function(message)
        if isinstance(answer, bytes):
            return fitting(answer)
        for field, name in given:
            call.subject[name] = short(getattr(answer, field))
        return fitting(answer.SerializeToString())

    return run


def fitting(answer: bytes) -> bytes:
    """Return an encoded answer; grpc would end the call without a reason if it were too long."""
    if len(answer) > MAX_MESSAGE:
        raise ResourceExhaustedError(
            f"the answer has {len(answer)} bytes and a message may have {MAX_MESSAGE}: ask with a filter"
        )
    return answer


def _subject_fields(names: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((field, name) for field, name in SUBJECTS.items() if field in names)
