"""From a service's descriptor and a servicer to gRPC handlers: decode, call, encode, with the interceptors around.

A servicer's method for `ListPodSandbox` is called `list_pod_sandbox`; it takes the request message and gives the
answer as a message, or as bytes already encoded (the lists do). That of a server-streaming RPC takes what sends its
messages besides, and that of a client-streaming RPC an iterator of messages in the request's place. Messages
are decoded and encoded here and not by grpc, so that bytes that are no message and answers that cannot be encoded pass
the interceptors like any other error. RPCs that this version does not have answer Unimplemented with the sentence of
`unimplemented.py`.
"""

import keyword
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from structlog.contextvars import bind_contextvars

from crishim.constants import MESSAGE_BYTES
from crishim.errors import InvalidArgumentError, ResourceExhaustedError, UnimplementedError
from crishim.ids import short
from crishim.server.calls import Call, Calls, Stream
from crishim.server.errors import Refusal
from crishim.server.interceptors import Handler, RpcObserver, intercept
from crishim.server.unimplemented import SENTENCES

Answer = Message | bytes
Method = Callable[[Any], Awaitable[Answer]]
Send = Callable[[Answer], Awaitable[None]]
StreamMethod = Callable[[Any, "Sender"], Awaitable[None]]

CRI_PACKAGE = "runtime.v1"

SUBJECTS = {"pod_sandbox_id": "pod", "container_id": "container"}
"""Fields of requests and answers that say what a call is about, and their names in the log."""


class Sender:
    """Sends the messages of a server-streaming RPC; called with each, waits while the client does not read."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __call__(self, message: Answer) -> None:
        """Send one."""
        await self._stream.write(fitting(message if isinstance(message, bytes) else message.SerializeToString()))

    async def begin(self) -> None:
        """Let the client know, before there is a message, that the call has begun."""
        await self._stream.begin()


class _Stream:
    """The client's end of a stream, as grpc has it."""

    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self._context = context

    async def begin(self) -> None:
        await self._context.send_initial_metadata(())

    async def write(self, message: bytes) -> None:
        await self._context.write(message)


def snake(name: str) -> str:
    """Return the servicer's name of an RPC: `ListPodSandbox` → `list_pod_sandbox`, `Import` → `import_`."""
    found = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return f"{found}_" if keyword.iskeyword(found) else found


def label(method: MethodDescriptor) -> str:
    """Return an RPC's name in log and metrics: the CRI's alone, others with their service, like `Images.Pull`."""
    service = method.containing_service
    return method.name if service.file.package == CRI_PACKAGE else f"{service.name}.{method.name}"


def service_handler(
    service: ServiceDescriptor, servicer: object, calls: Calls, observer: RpcObserver
) -> "grpc.GenericRpcHandler[Any, Any]":
    """Return the handler of a whole service."""
    handlers = {method.name: _method_handler(method, servicer, calls, observer) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _method_handler(
    method: MethodDescriptor, servicer: object, calls: Calls, observer: RpcObserver
) -> "grpc.RpcMethodHandler[Any, Any]":
    function = getattr(servicer, snake(method.name), None)
    name = label(method)
    if function is None:
        inner = _absent(name)
    elif method.server_streaming:
        inner = _streaming(method, function)
    else:
        inner = _present(method, function)
    handler = intercept(name, inner, observer)

    async def answer(request: bytes, call: Call, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
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

    async def unary(request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        return await answer(request, Call(name, context.time_remaining()), context)

    async def stream(request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        await answer(request, Call(name, context.time_remaining(), _Stream(context)), context)

    async def conversation(requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        await answer(b"", Call(name, context.time_remaining(), _Stream(context), requests), context)

    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(conversation)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(unary)


def _absent(name: str) -> Handler:
    sentence = SENTENCES[name]

    async def run(_request: bytes, _call: Call) -> bytes:
        raise UnimplementedError(sentence)

    return run


def _present(method: MethodDescriptor, function: Method) -> Handler:
    decode = _decoder(method)
    asked = _subject_fields(method.input_type.fields_by_name)
    given = _subject_fields(method.output_type.fields_by_name)

    async def run(request: bytes, call: Call) -> bytes:
        message = decode(request)
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


def _streaming(method: MethodDescriptor, function: StreamMethod) -> Handler:
    decode = _decoder(method)

    async def run(request: bytes, call: Call) -> bytes:
        stream, received = call.stream, call.received
        assert stream is not None

        async def messages(parts: AsyncIterator[bytes]) -> AsyncIterator[Message]:
            async for part in parts:
                yield decode(part)

        await function(decode(request) if received is None else messages(received), Sender(stream))
        return b""

    return run


def _decoder(method: MethodDescriptor) -> Callable[[bytes], Message]:
    kind = GetMessageClass(method.input_type)

    def decode(request: bytes) -> Message:
        try:
            return kind.FromString(request)
        except DecodeError:
            raise InvalidArgumentError("", f"the request is no valid {method.input_type.full_name}") from None

    return decode


def fitting(answer: bytes) -> bytes:
    """Return an encoded answer; grpc would end the call without a reason if it were too long."""
    if len(answer) > MESSAGE_BYTES:
        raise ResourceExhaustedError(
            f"the answer has {len(answer)} bytes and a message may have {MESSAGE_BYTES}: ask with a filter"
        )
    return answer


def _subject_fields(names: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((field, name) for field, name in SUBJECTS.items() if field in names)
