"""Tags, names taken away, prune, and what the list says: on a store of its own, across restarts."""

from pathlib import Path

import pytest

from crishim.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from crishim.images.model import Removed
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service
from tests.support.layout import Entry, tar

ONE, TWO, BASE = (tar([Entry(name, name.encode() * 1000)]) for name in ("one", "two", "base"))


async def test_a_tag_moves_and_stays_after_a_restart(fake: FakeRegistry, tmp_path: Path) -> None:
    one, two = fake.image("one", [ONE]), fake.image("two", [TWO])
    async with Service(str(tmp_path)) as service:
        for name in ("one", "two"):
            await service.images.pull(f"{fake.host}/a:{name}")
        assert await service.images.tag(f"{fake.host}/a:one", "app") == (one["id"], "docker.io/library/app:latest")
        await service.images.tag(two["id"][7:20], "app")
        with pytest.raises(InvalidArgumentError, match="name: 'app@sha256:"):
            await service.images.tag("app", f"app@{one['digest']}")
        with pytest.raises(NotFoundError, match="no image nothing is here"):
            await service.images.tag("nothing", "app")
        with pytest.raises(InvalidArgumentError, match=r"image: 'docker\.io/No/thing' "):
            await service.images.tag("docker.io/No/thing", "app")
    async with Service(str(tmp_path)) as service:
        found = service.images.find("app")
        assert found is not None
        assert found.id == two["id"]
        assert found.repo_tags == (f"{fake.host}/a:two", "docker.io/library/app:latest")


async def test_an_image_goes_with_its_last_name(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [ONE])
    name, digest = f"{fake.host}/a:t", f"{fake.host}/a@{made['digest']}"
    async with Service(str(tmp_path)) as service:
        images = service.images
        await images.pull(name)
        await images.tag(name, f"{fake.host}/a:u")
        await images.tag(name, "other/a")
        assert images.untag(f"{fake.host}/a:u", force=False) == Removed((f"{fake.host}/a:u",))
        with pytest.raises(FailedPreconditionError, match=r"has 2 names \(.*--force"):
            images.untag(made["id"], force=False)
        # The digest reference goes with the last tag of its repository.
        assert images.untag(name, force=False) == Removed((name, digest))
        assert images.untag("other/a", force=False) == Removed(("docker.io/other/a:latest",), made["id"])
        with pytest.raises(NotFoundError):
            images.untag(name, force=True)
        await images.settled()
        assert service.files() == []
        await images.pull(name)
        await images.tag(name, "other/a")
        assert images.untag(made["id"], force=True).id == made["id"]
        assert images.list() == []


async def test_what_is_held(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [ONE])
    name = f"{fake.host}/a:t"
    async with Service(str(tmp_path)) as service:
        images = service.images
        images.hold(await images.pull(name), "container1")
        for text in (name, made["id"]):
            with pytest.raises(FailedPreconditionError, match="is used by container container1: remove them first"):
                images.untag(text, force=False)
        assert images.prune(unused=True, dry_run=False).images == ()
        assert images.untag(name, force=True).id == made["id"]
        assert images.details("", dangling=False) == []
        assert service.files() != []
        images.release("container1")
        await images.settled()
        assert service.files() == []


async def test_prune_says_what_it_frees(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("one", [BASE, ONE])
    fake.image("two", [BASE, TWO])
    async with Service(str(tmp_path)) as service:
        images = service.images
        for name in ("one", "two"):
            await images.pull(f"{fake.host}/a:{name}")
        await images.tag(f"{fake.host}/a:two", f"{fake.host}/a:one")
        used = images.fs_usage().used_bytes
        dry = images.prune(unused=False, dry_run=True)
        assert images.fs_usage().used_bytes == used
        done = images.prune(unused=False, dry_run=False)
        assert done == dry
        assert done.freed == used - images.fs_usage().used_bytes
        assert len(done.images) == 1
        assert [names for names in done.images[0].names if "@" not in names] == []
        assert images.prune(unused=False, dry_run=False).images == ()
        left = images.fs_usage().used_bytes
        assert images.prune(unused=True, dry_run=False).freed == left
        await images.settled()
        assert service.files() == []


async def test_the_list_knows_sizes_and_what_is_shared(fake: FakeRegistry, tmp_path: Path) -> None:
    one = fake.image("one", [BASE, ONE], created="2026-01-01T00:00:00Z")
    two = fake.image("two", [BASE, TWO], created="2026-02-01T00:00:00Z")
    async with Service(str(tmp_path)) as service:
        images = service.images
        for name in ("one", "two"):
            await images.pull(f"{fake.host}/{name}:{name}")
        await images.tag(f"{fake.host}/two:two", "docker.io/library/short")
        found = images.details("", dangling=False)
        assert [detail.image.id for detail in found] == [two["id"], one["id"]]
        assert [use.images for use in found[0].layers] == [2, 1]
        assert found[0].manifest == two["digest"]
        assert 0 < found[0].shared < found[0].image.size
        assert found[0].layers[0].layer.size + found[0].layers[0].unpacked == found[0].shared
        for pattern, ids in (
            ("*", [two["id"], one["id"]]),
            (f"{fake.host}/*", [two["id"], one["id"]]),
            ("sho?t*", [two["id"]]),
            ("short", [two["id"]]),
            (f"{fake.host}/one", [one["id"]]),
            (f"{fake.host}/one:no", []),
            (one["id"][7:19], [one["id"]]),
            ("0123456789ab", []),
        ):
            assert [detail.image.id for detail in images.details(pattern, dangling=False)] == ids, pattern
        with pytest.raises(InvalidArgumentError, match="filter: "):
            images.details("Not/Good", dangling=False)
        assert images.details("", dangling=True) == []


async def test_the_list_goes_by_age_and_by_name_where_that_is_the_same(fake: FakeRegistry, tmp_path: Path) -> None:
    times = {
        "west": "2026-03-01T00:30:00-02:00",  # half past two in UTC
        "east": "2026-03-01T03:00:00+02:00",  # one o'clock
        "nine": "2026-03-01T00:00:00.123456789Z",
        **dict.fromkeys(["delta", "alpha", "charlie", "bravo"], "1970-01-01T00:00:00Z"),
        "odd": "yesterday",
        "none": "",
    }
    async with Service(str(tmp_path)) as service:
        for number, (name, created) in enumerate(times.items()):
            fake.image(name, [ONE], created=created, author=str(number))
            await service.images.pull(f"{fake.host}/{name}:{name}")
        shown = [one.image.repo_tags[0].rpartition(":")[2] for one in service.images.details("", dangling=False)]
    assert shown == ["west", "east", "nine", "alpha", "bravo", "charlie", "delta", "none", "odd"]
