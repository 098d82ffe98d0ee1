"""The client half of gRPC: one synchronous channel to the daemon's socket, and our errors for its status codes."""

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from crishim._proto.crishim.v1 import images_pb2, images_pb2_grpc
from crishim._proto.runtime.v1 import api_pb2, api_pb2_grpc
from crishim.constants import MESSAGE_BYTES
from crishim.errors import (
    CrishimError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)

TIMEOUT = 30.0
"""Seconds that the daemon gets for an answer; streams (pulls, pushes) have no limit."""

SOCKET_PATH_LENGTH = 107
"""Longest path of a unix socket (unix(7), sun_path less the terminating zero)."""


_ERRORS: Mapping[grpc.StatusCode, type[CrishimError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNKNOWN: UnavailableError,  # the errors that kubelet knows by name: a registry
}
_OWN_UNAVAILABLE = ("failed to connect", "Socket closed", "Connection reset", "GOAWAY", "recvmsg", "Stream removed")
"""How grpc's own texts begin when it is the daemon that cannot be reached; others are the daemon's sentences."""


class Client:
    """A connection to one daemon; a context manager.

    Args:
        path: the daemon's socket.

    Raises:
        UnavailableError, PermissionDeniedError: no socket is there, or it is not ours to use.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory = -1
        if not os.path.exists(path):
            raise UnavailableError(f"no daemon serves on {path}: start 'crishim serve', or name its --socket")
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionDeniedError(f"{path} is not ours to use, try again as root")
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(f"unix:{self._reachable()}", options=options)
        self.runtime: Any = api_pb2_grpc.RuntimeServiceStub(self._channel)
        self.images: Any = images_pb2_grpc.ImagesStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        if self._directory >= 0:
            os.close(self._directory)

    def container_info(self, container_id: str) -> Mapping[str, str]:
        """Return ContainerStatus(verbose)'s info of a container, by id or unique prefix."""
        request = api_pb2.ContainerStatusRequest(container_id=container_id, verbose=True)
        return dict(self.call(self.runtime.ContainerStatus, request).info)

    def list_images(self, pattern: str, *, dangling: bool) -> list[images_pb2.Image]:
        """Return the images that a name, an id or a pattern means."""
        request = images_pb2.ListRequest(filter=pattern, dangling=dangling)
        return list(self.call(self.images.List, request).images)

    def call(self, method: Any, request: Any) -> Any:
        """Call a unary RPC; raises our errors."""
        try:
            return method(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise self._translated(error) from None

    def stream(self, method: Any, request: Any) -> Iterator[Any]:
        """Yield the answers of a server-streaming RPC; `request` is an iterator where that streams too.

        A consumer that stops early, by an exception like KeyboardInterrupt too, cancels the call.
        """
        call = method(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._translated(error) from None
        finally:
            call.cancel()

    def _translated(self, error: Any) -> CrishimError:
        code, text = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
            if text and not text.startswith(_OWN_UNAVAILABLE):
                return UnavailableError(text)
            return UnavailableError(f"no daemon answers on {self._path}: start 'crishim serve', or name its --socket")
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgumentError("", text)
        return _ERRORS.get(code, InternalError)(text or code.name)

    def _reachable(self) -> str:
        """Return a path that fits a socket address: a long one is reached through its directory's descriptor."""
        path = os.path.abspath(self._path)
        if len(os.fsencode(path)) <= SOCKET_PATH_LENGTH:
            return path
        self._directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{os.path.basename(path)}"
