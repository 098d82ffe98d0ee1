"""The client half of gRPC: one synchronous channel to the daemon's socket, and our errors for its status codes."""

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from crishim._proto.runtime.v1 import api_pb2, api_pb2_grpc
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
"""Seconds that the daemon gets for an answer."""

SOCKET_PATH_LENGTH = 107
"""Longest path of a unix socket (unix(7), sun_path less the terminating zero)."""

_ERRORS: Mapping[grpc.StatusCode, type[CrishimError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}


class Client:
    """A connection to one daemon; a context manager.

    Args:
        path: the CRI's socket.

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
        self._channel = grpc.insecure_channel(f"unix:{self._reachable()}", options=[("grpc.enable_http_proxy", 0)])
        self._runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)

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
        return dict(self._call(self._runtime.ContainerStatus, request).info)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise self._translated(error) from None

    def _translated(self, error: Any) -> CrishimError:
        code, text = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
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
