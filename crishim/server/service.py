"""The server: the CRI's two services and crishim.v1's over grpc.aio on one unix socket.

Out of scope: what the RPCs do (`pods/`, `images/`). Invariant: between `start` and the end of `stop` there is a socket
of mode 0600 at the path, and every call in flight stands in `calls`.
"""

from collections.abc import Sequence

import grpc.aio
import structlog

from crishim._proto.crishim.v1 import images_pb2
from crishim._proto.runtime.v1 import api_pb2
from crishim.constants import MESSAGE_BYTES
from crishim.images.model import ImagesManager
from crishim.pods.api import RuntimeApi
from crishim.server.archive_service import ArchiveService
from crishim.server.calls import Calls
from crishim.server.image_service import ImageService
from crishim.server.interceptors import RpcObserver
from crishim.server.listener import Listener
from crishim.server.methods import service_handler
from crishim.server.runtime_service import RuntimeService

OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    # Clients ping an idle connection as they like; without these grpc closes it with "too many pings".
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)

log: structlog.stdlib.BoundLogger = structlog.get_logger("crishim.server")


class Server:
    """The server of one instance.

    Args:
        runtime: sandboxes and containers.
        images: images.
        socket: absolute path of the unix socket.
        observer: told of each RPC (`metrics.metrics.Metrics`).
    """

    def __init__(self, runtime: RuntimeApi, images: ImagesManager, socket: str, observer: RpcObserver) -> None:
        self.calls = Calls()
        self.socket = socket
        self._listener = Listener(socket)
        self._server: grpc.aio.Server | None = None
        services = {**api_pb2.DESCRIPTOR.services_by_name, **images_pb2.DESCRIPTOR.services_by_name}
        self._handlers = (
            service_handler(services["RuntimeService"], RuntimeService(runtime), self.calls, observer),
            service_handler(services["ImageService"], ImageService(images, runtime), self.calls, observer),
            service_handler(services["Images"], ArchiveService(images), self.calls, observer),
        )

    async def start(self) -> None:
        """Bind the socket and serve; raises the errors of `Listener.bind`."""
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers(self._handlers)
        try:
            self._listener.bind(server)
            await server.start()
        except BaseException:
            await server.stop(None)
            self._listener.close()
            raise
        self._server = server
        log.info("serving", socket=self.socket)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give those in flight `grace` seconds, then cancel them; repeatable."""
        server, self._server = self._server, None
        if server is None:
            return
        if self.calls:
            log.info("waiting for calls in flight", calls=self.calls.describe(), grace=grace)
        await server.stop(grace)
        self._listener.close()
