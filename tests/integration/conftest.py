"""Fixtures of several integration tests."""

from collections.abc import Iterator

import pytest

from tests.fakes.registry import FakeRegistry
from tests.support.abilities import CLONE_NEWNS, can_mount, can_unshare


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    """Return a registry in this process, for faults that a real one cannot make."""
    if not can_unshare(CLONE_NEWNS) or not can_mount():
        pytest.skip("lacks the ability to make mount namespaces (CAP_SYS_ADMIN)")
    with FakeRegistry() as made:
        yield made
