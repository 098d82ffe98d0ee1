"""Images that plant Python modules and name services where a careless runtime would load them as root."""

import os
import tarfile
from pathlib import Path

import pytest

from tests.support.busybox import base_entries, find_busybox
from tests.support.cri import attempt
from tests.support.layout import Entry, directory, symlink
from tests.support.world import World

MODULES = ("traceback", "encodings", "codecs", "os", "pwd", "grp", "json", "errno", "linecache", "sitecustomize")
PLACES = (
    "usr/lib/python3.11",
    "usr/lib/python3/dist-packages",
    "usr/local/lib/python3.11/dist-packages",
    "work/venv/lib/python3.11/site-packages",
    "crishim",
)
PAYLOAD = b"import os\nos.close(os.open('/planted-code-ran', os.O_CREAT | os.O_WRONLY))\n"
NSSWITCH = b"passwd: trap files\ngroup: trap files\nhosts: trap\n"


@pytest.fixture
def busybox_file(tmp_path: Path) -> str:
    """Return a static busybox of the host's, for images that hold no program."""
    path = tmp_path / "busybox"
    path.write_bytes(Path(find_busybox()).read_bytes())
    os.chmod(path, 0o755)
    return str(path)


def planted() -> list[Entry]:
    """Return an image layer full of modules and NSS traps that leave a mark at the root when they run."""
    entries: list[Entry] = []
    for place in PLACES:
        parts = place.split("/")
        entries += [directory("/".join(parts[:n])) for n in range(1, len(parts) + 1)]
        entries += [Entry(f"{place}/{name}.py", PAYLOAD) for name in MODULES]
        entries += [directory(f"{place}/encodings"), Entry(f"{place}/encodings/__init__.py", PAYLOAD)]
    entries += [
        Entry("etc/nsswitch.conf", NSSWITCH),
        Entry("etc/ld.so.preload", b"/lib/libtrap.so\n"),
        Entry("lib/libtrap.so", b"\x7fELF not really", 0o755),
        Entry("lib/libnss_trap.so.2", b"\x7fELF not really", 0o755),
        Entry("pyvenv.cfg", b"home = /usr/lib/python3.11\n"),
    ]
    return [directory("lib"), *entries]


async def test_nothing_of_the_image_runs_before_its_program(world: World) -> None:
    image = await world.make_image("planted", planted(), {"User": "tester"})
    pod = await world.pod()
    look = "ls -d /planted-code-ran; id -u; id -G"
    outcome = await world.once(look, pod=pod, image=image)
    assert outcome.stdout.split() == ["1000", "1000", "50000"]
    container = await world.run(pod, "sleep 600", image=image)
    assert (await world.cri.output(container, "sh", "-c", "ls -d /planted-code-ran 2>/dev/null; id -u")) == "1000\n"
    bad = await world.cri.create(pod.id, world.config(["/no/such/program"], image=image), pod.config)
    _, error = await attempt(world.cri.start(bad))
    assert error is not None
    assert "/no/such/program" in str(error.details())


async def test_labels_of_an_image_are_not_the_containers(world: World) -> None:
    labels = {"io.kubernetes.pod.name": "forged", "io.crishim.runtime": "forged", "crishim": "forged"}
    image = await world.make_image("labels", config={"Labels": labels})
    container = await world.run(await world.pod(), "sleep 600", image=image, labels={"mine": "1"})
    status = await world.cri.status(container)
    assert dict(status.labels) == {"mine": "1"}
    assert dict(status.annotations) == {}


async def test_passwd_and_group_that_lead_out_of_the_image_are_read_inside(world: World) -> None:
    layer = [
        directory("users"),
        symlink("etc/passwd", "../../../../../../users/passwd"),
        symlink("etc/group", "/users/group"),
        Entry("users/passwd", b"root:x:0:0::/root:/bin/sh\n\nbroken line\ninside:x:1717:1718::/home/inside:/bin/sh\n"),
        Entry("users/group", b"root:x:0:\ninside:x:1718:\nmore:x:1719:inside,other\n"),
    ]
    image = await world.make_image("users", layer)
    outcome = await world.once("id -u; id -G; echo $HOME", image=image, security={"run_as_username": "inside"})
    assert outcome.stdout.split() == ["1717", "1718", "1719", "/home/inside"]


async def test_a_passwd_that_is_no_file_does_not_hang_the_start(world: World) -> None:
    layer = [Entry("etc/passwd", kind=tarfile.FIFOTYPE, mode=0o644), Entry("etc/group", bytes(3 << 20))]
    image = await world.make_image("fifo", layer)
    outcome = await world.once(
        "cat /proc/self/loginuid >/dev/null; echo ran", image=image, security={"run_as_user": {"value": 7}}
    )
    assert outcome.stdout == "ran\n"


STACKS = {
    "the empty layer alone": "e",
    "the empty layer three times": "eee",
    "no-op steps above the system": "see",
    "the system twice": "ss",
    "a layer before and after another": "sxyx",
    "the empty layer all over": "esexeye",
}


@pytest.mark.parametrize("case", STACKS)
async def test_an_image_may_list_a_layer_more_than_once(world: World, busybox_file: str, case: str) -> None:
    """Each RUN or WORKDIR that changes nothing adds the same empty layer; overlayfs takes a directory only once."""
    layers = {
        "e": [],
        "s": base_entries(),
        "x": [Entry("first", b"x"), Entry(".wh.second")],
        "y": [Entry("second", b"y"), Entry(".wh.first")],
    }
    image = await world.image_of("stack", [layers[which] for which in STACKS[case]])
    mounts = [{"host_path": busybox_file, "container_path": "/tool/busybox", "readonly": True}]
    script = "for f in /first /second; do test -e $f && cat $f; done; echo $(echo ran >/new && cat /new)"
    words = ["/tool/busybox", "sh", "-c", f"alias cat='/tool/busybox cat'; {script}"]
    outcome = await world.once(words, image=image, mounts=mounts)
    assert outcome.stdout == {"sxyx": "x", "esexeye": "y"}.get(STACKS[case], "") + "ran\n"


async def test_an_image_may_have_no_layer_at_all(world: World, busybox_file: str) -> None:
    image = await world.image_of("none", [])
    mounts = [{"host_path": busybox_file, "container_path": "/tool/busybox", "readonly": True}]
    pod = await world.pod()
    for readonly in (False, True):
        script = "echo ran; /tool/busybox ls /; /tool/busybox mkdir /made && echo made"
        outcome = await world.once(
            ["/tool/busybox", "sh", "-c", script],
            pod=pod,
            image=image,
            mounts=mounts,
            security={"readonly_rootfs": readonly},
        )
        assert outcome.stdout.split() == ["ran", "dev", "etc", "proc", "sys", "tool", *([] if readonly else ["made"])]
    bad = await world.cri.create(pod.id, world.config(["/nothing"], image=image), pod.config)
    _, error = await attempt(world.cri.start(bad))
    assert error is not None
    assert "/nothing" in str(error.details())
