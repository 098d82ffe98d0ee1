"""The sandboxes and containers of one runtime by id, prefix of an id, and name.

Invariant: an object is in the registry exactly while its row is in the store (a CREATING sandbox included).
Out of scope: what objects hold (`objects`), and the world.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from crishim.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from crishim.pods.objects import Container, Rows, Sandbox
from crishim.pods.records import ContainerSpec, ContainerStatus, SandboxSpec, SandboxStatus
from crishim.pods.states import Stage

Thing = TypeVar("Thing", Sandbox, Container)


class Index(Generic[Thing]):
    """Objects by id and by name, in the order of their creation.

    Args:
        kind: `sandbox` or `container`, for messages.
        rows: the store's table.
    """

    def __init__(self, kind: str, rows: Rows) -> None:
        self.kind = kind
        self.rows = rows
        self._by_id: dict[str, Thing] = {}
        self._by_name: dict[str, Thing] = {}

    def __iter__(self) -> Iterator[Thing]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def newest(self) -> Iterable[Thing]:
        """Return the objects, newest first."""
        return reversed(self._by_id.values())

    def load(self, thing: Thing) -> None:
        """Add an object whose row is in the store already."""
        self._by_id[thing.id] = thing
        self._by_name[thing.name] = thing

    def ensure_free(self, name: str) -> None:
        """Raise AlreadyExistsError, naming the owner, if the name is taken."""
        owner = self._by_name.get(name)
        if owner is not None:
            raise AlreadyExistsError(
                f"{self.kind} name {name!r} is taken by {owner.id}: remove it, or raise the attempt"
            )

    def insert(self, thing: Thing, parent: str = "") -> None:
        """Add a new object, in the store first."""
        self.ensure_free(thing.name)
        self.rows.insert(thing.id, thing.name, thing.document, parent)
        self.load(thing)

    def delete(self, thing: Thing) -> None:
        """Forget an object, in the store first."""
        self.rows.delete(thing.id)
        self._by_id.pop(thing.id, None)
        if self._by_name.get(thing.name) is thing:
            del self._by_name[thing.name]

    def find(self, identifier: str) -> Thing | None:
        """Return the object with this id or unique prefix of an id; None if there is none.

        Raises:
            InvalidArgumentError: the id is empty, or a prefix of several.
        """
        thing = self._by_id.get(identifier)
        if thing is not None:
            return thing
        if not identifier:
            raise InvalidArgumentError(f"{self.kind}_id", "is empty; an id or its beginning is wanted")
        found = [known for known in self._by_id if known.startswith(identifier)]
        if len(found) > 1:
            some = ", ".join(known[: len(identifier) + 8] for known in found[:3])
            raise InvalidArgumentError(f"{self.kind}_id", f"{identifier!r} is ambiguous ({len(found)} match: {some}…)")
        return self._by_id[found[0]] if found else None

    def get(self, identifier: str) -> Thing:
        """Return the object with this id or unique prefix; NotFoundError if there is none."""
        thing = self.find(identifier)
        if thing is None:
            raise NotFoundError(f"{self.kind} {identifier!r} does not exist")
        return thing


class Registry:
    """All objects of one runtime."""

    def __init__(self, sandbox_rows: Rows, container_rows: Rows) -> None:
        self.sandboxes: Index[Sandbox] = Index("sandbox", sandbox_rows)
        self.containers: Index[Container] = Index("container", container_rows)

    def sandbox(self, identifier: str) -> Sandbox:
        """Return a sandbox that is shown (not one in the making)."""
        sandbox = self.find_sandbox(identifier)
        if sandbox is None:
            raise NotFoundError(f"sandbox {identifier!r} does not exist")
        return sandbox

    def find_sandbox(self, identifier: str) -> Sandbox | None:
        """Return a sandbox that is shown, or None."""
        sandbox = self.sandboxes.find(identifier)
        return None if sandbox is None or sandbox.status.stage is Stage.CREATING else sandbox

    def new_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """Make and insert a sandbox in stage CREATING: its name is now reserved."""
        sandbox = Sandbox(self.sandboxes.rows, spec, SandboxStatus())
        self.sandboxes.insert(sandbox)
        return sandbox

    def new_container(self, sandbox: Sandbox, spec: ContainerSpec, status: ContainerStatus) -> Container:
        """Make a container of a sandbox, not yet inserted."""
        return Container(self.containers.rows, sandbox, spec, status)

    def insert_container(self, container: Container) -> None:
        """Add a container, in the store first."""
        self.containers.insert(container, container.sandbox.id)
        container.sandbox.containers[container.id] = container

    def delete_container(self, container: Container) -> None:
        """Forget a container, in the store first."""
        self.containers.delete(container)
        container.sandbox.containers.pop(container.id, None)


def matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Tell whether `labels` has every pair of `wanted`."""
    return all(labels.get(key) == value for key, value in wanted.items())
