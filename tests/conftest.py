"""Fixtures of all tests. The leak check runs by itself around every integration and conformance test and module."""

import asyncio
import contextlib
import inspect
import os
import tempfile
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.support import layout, leaks, orphans, surroundings
from tests.support.abilities import need_containers, need_extraction
from tests.support.busybox import plan
from tests.support.instance import Instance
from tests.support.ownership import SCOPE, run_id
from tests.support.registry import PushedImage, Registry
from tests.support.world import World

_CHECKED = ("integration", "conformance")
_FAILED = pytest.StashKey[bool]()
_PATIENCE = 240
"""Seconds after which a scenario that hangs is given up."""


def pytest_configure(config: pytest.Config) -> None:
    """Give the run its id before any program starts; let properties be as slow as the machine is, and always alike."""
    surroundings.settle()
    settings.register_profile("crishim", deadline=None, derandomize=True, database=None)
    settings.load_profile("crishim")
    SCOPE.words.add(f"crishim-test-{run_id()}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Learn the directory below which this test's files lie."""
    factory = getattr(item.config, "_tmp_path_factory", None)
    if factory is not None and not SCOPE.directories:
        SCOPE.directories.add(str(factory.getbasetemp()))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines; their `world` is open while they run."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for value in arguments.values():
                if isinstance(value, World):
                    await stack.enter_async_context(value)
            async with asyncio.timeout(_PATIENCE):
                await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True


@pytest.fixture
def extraction() -> None:
    """Skip unless layers can be unpacked here."""
    need_extraction()


def _checked(request: pytest.FixtureRequest) -> bool:
    parts = request.node.nodeid.split("/")
    return len(parts) > 2 and parts[1] in _CHECKED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test failed: its traceback keeps its channels open, which is no leak of its own."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


def _check(before: leaks.Snapshot, what: str, *, failed: bool = False) -> None:
    found = [leak for leak in leaks.leaks_since(before) if not (failed and leak.kind == "fd")]
    if found:
        leaks.scrub(found)
        pytest.fail(f"{what} left behind:\n" + "\n".join(f"  {leak}" for leak in found), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def module_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the machine before and after a module, its instances and registries ended."""
    if not _checked(request):
        yield
        return
    before = leaks.snapshot()
    yield
    _check(before, request.node.nodeid)


@pytest.fixture(autouse=True)
def test_leaks(request: pytest.FixtureRequest, module_leaks: None) -> Iterator[None]:
    """Compare the machine before and after a test; instances of the module may go on."""
    if not _checked(request):
        yield
        return
    before = leaks.snapshot()
    yield
    orphans.give_back()
    _check(before, request.node.nodeid, failed=request.node.stash.get(_FAILED, False))


@pytest.fixture
def instance(test_leaks: None) -> Iterator[Instance]:
    """Return a running private instance for one test."""
    yield from _instance()


@pytest.fixture(scope="module")
def shared_instance(module_leaks: None) -> Iterator[Instance]:
    """Return a running private instance for all tests of a module; each test removes what it makes."""
    yield from _instance()


def _instance() -> Iterator[Instance]:
    need_containers()
    made = Instance()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """Return a real registry on a loopback port for the whole run."""
    with tempfile.TemporaryDirectory(prefix="ctreg") as path:
        server = Registry(path)
        SCOPE.live.append(server)
        yield server
        SCOPE.live.remove(server)
        server.close()


@pytest.fixture(scope="session", name="busybox")
def pushed_busybox(registry: Registry) -> PushedImage:
    """Return the test image (shell, web server, curl) in the registry."""
    path = os.path.join(registry.directory, "busybox")
    identifier = layout.write(path, plan())
    return PushedImage(registry.push(path, "busybox:1"), identifier)


@pytest.fixture(scope="session")
def busybox_reference(busybox: PushedImage) -> str:
    """Return the test image's reference."""
    return busybox.reference


@pytest.fixture
def image(instance: Instance, busybox_reference: str) -> str:
    """Return the test image, pulled by this test's instance."""
    instance.crictl("pull", busybox_reference)
    return busybox_reference


@pytest.fixture(scope="module")
def shared_image(shared_instance: Instance, busybox_reference: str) -> str:
    """Return the test image, pulled by the module's instance."""
    shared_instance.crictl("pull", busybox_reference)
    return busybox_reference


@pytest.fixture
def world(shared_instance: Instance, shared_image: str, registry: Registry) -> World:
    """Return a maker of pods and containers on the module's instance; what it makes is gone after the test."""
    return World(shared_instance, shared_image, registry)


@pytest.fixture
def own_world(instance: Instance, image: str, registry: Registry) -> World:
    """Return a maker of pods and containers on an instance of this test's own, which may be killed."""
    return World(instance, image, registry)
