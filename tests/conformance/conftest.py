"""What the crictl tests share: a pod of a module's instance, gone after each test."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.configs import Config, pod_config, shell
from tests.support.instance import Instance
from tests.support.machine import read
from tests.support.waiting import wait_for

STAY = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"
"""A program that runs until SIGTERM and then ends with 7."""


@dataclass(frozen=True)
class Pod:
    """A running pod: its id, its config, and the instance that runs it."""

    instance: Instance
    id: str
    config: Config
    image: str

    def run(self, name: str, script: str = STAY, **more: Any) -> str:
        """Create and start a container with a shell script; return its id."""
        return self.instance.run(self.id, shell(name, self.image, script, **more), self.config)

    def status(self, container: str) -> Any:
        """Return `crictl inspect`'s status."""
        return self.instance.json("inspect", container)["status"]

    def wait_up(self, name: str) -> None:
        """Wait until the container of this name has written its first line (STAY's trap stands then)."""
        wait_for(lambda: b" up\n" in read(f"{self.config['log_directory']}/{name}.log"))

    def wait_exit(self, container: str) -> None:
        """Wait until the container has ended by itself."""
        wait_for(lambda: self.status(container)["state"] == "CONTAINER_EXITED")


@pytest.fixture
def pod(shared_instance: Instance, shared_image: str) -> Iterator[Pod]:
    config = pod_config(
        "web",
        log_directory=f"{shared_instance.logs}/web",
        labels={"app": "web"},
        annotations={"note": "of the request"},
    )
    identifier = shared_instance.run_pod(config)
    yield Pod(shared_instance, identifier, config, shared_image)
    shared_instance.crictl("rmp", "-f", identifier, check=False)
