"""Prometheus' own tool has nothing to complain about."""

import asyncio
import subprocess
import urllib.request

from crishim.metrics import catalog
from crishim.metrics.endpoint import Endpoint
from crishim.metrics.metrics import Metrics
from tests.support.abilities import need_program


def scraped(address: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        return bytes(answer.read())


async def test_promtool_check_metrics() -> None:
    promtool = need_program("promtool", "prometheus")
    metrics = Metrics()
    metrics.watch(catalog.PODS, lambda: {("READY",): 1})
    metrics.watch(catalog.CONTAINERS, lambda: {("RUNNING",): 1, ("EXITED",): 2})
    metrics.watch(catalog.KEEPERS, lambda: {(): 1})
    metrics.rpc_started("RunPodSandbox")
    metrics.rpc_finished("RunPodSandbox", "OK", 0.01)
    metrics.start_phase("network", 0.001)
    metrics.image_pull(outcome="UNAVAILABLE", seconds=3)
    metrics.image_received(9)
    metrics.leak_reclaimed("cgroup")
    metrics.degraded("rlimit")
    metrics.watch(catalog.NETWORK_ADDRESSES, lambda: {("ipv4", "used"): 1, ("ipv4", "free"): 252})
    metrics.network_attach("embedded", 0.003)
    metrics.network_detach("embedded", 0.001)
    metrics.network_error("bridge", "999")
    endpoint = Endpoint(metrics, "127.0.0.1:0", lambda: (True, ""))
    await endpoint.start()
    try:
        text = await asyncio.to_thread(scraped, endpoint.address)
    finally:
        await endpoint.close()
    run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
