"""The unpacker: forked by the spawner when a layer comes, loads the decompressors, and forks a child for each layer.

```
daemon ── {options} + [blob, progress, dir, report] ─►  fork: `unpack.extract`, reports on `report`
```
It ends at EOF of the daemon's socket; children that extract go on. It never enters a container, so what it loads may
lie where the host can write to. A fork that fails is reported on the layer's pipe.
"""

import _socket
import json
import os
from collections.abc import Callable

from crishim.engine import wire
from crishim.engine.forked import end_after
from crishim.linux import calls
from crishim.unpack import decompress, extract


def serve(control: _socket.socket, forbid_imports: Callable[[], None]) -> None:
    """Fork on request until the daemon closes.

    Args:
        control: this end of a SOCK_SEQPACKET pair.
        forbid_imports: makes every import fail from then on, in children too.
    """
    calls.set_name("crishim-unpack")  # 15 characters at most
    calls.set_title("crishim-unpacker")
    decompress.load()
    forbid_imports()
    while True:
        try:
            message, fds = wire.receive(control)
        except wire.ClosedError:
            return
        try:
            pid = os.fork()
        except OSError as error:
            refusal = {"error": f"fork: {error.strerror}", "kind": "os", "errno": error.errno}
            os.write(fds[-1], json.dumps(refusal).encode() + b"\n")
        else:
            if pid == 0:
                end_after(lambda: extract.run(fds, message["options"]), "extraction")  # noqa: B023  at once
        wire.close_all(fds)
