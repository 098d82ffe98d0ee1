"""Images and containers that mean harm: planted modules, links in the way of mounts, masks, the runtime's own files."""

import contextlib
import dataclasses
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.client import StartError
from crishim.engine.plan.types import Bind
from crishim.request import Capabilities, ContainerSecurity, Mount, NamespaceOptions
from tests.support.lab import OWN_PID, Lab, Pod, open_lab, scenario, until
from tests.support.surroundings import ABSENT

MASKED = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/acpi",
    "/sys/firmware",
    ABSENT,
    "/etc/passwd",
    "/etc",
)
READONLY = ("/proc/sys", "/proc/bus", "/proc/irq", ABSENT)


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


def security(**fields: object) -> ContainerSecurity:
    return ContainerSecurity(namespaces=OWN_PID, **fields)  # type: ignore[arg-type]


# --- a process that is still root must load nothing of the image ----------------------------------

EVIL = "import os\nopen('/pwned', 'w').write(__name__)\n"


def plant_python(top: str) -> None:
    """Put modules wherever an interpreter might look, and a name service that root's libraries would load."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = sysconfig.get_paths()["stdlib"].lstrip("/")
    places = {stdlib, f"usr/lib/{version}", f"usr/local/lib/{version}", "usr/lib/python3/dist-packages", "work", "."}
    places.add(os.path.dirname(os.path.dirname(os.path.dirname(__file__))).lstrip("/"))
    names = ("traceback", "json", "linecache", "os", "pwd", "codecs", "sitecustomize", "usercustomize", "__main__")
    for place in places:
        os.makedirs(f"{top}/{place}/encodings", exist_ok=True)
        os.makedirs(f"{top}/{place}/crishim/engine", exist_ok=True)
        for name in (*names, "encodings/__init__", "encodings/latin_1", "encodings/idna", "crishim/__init__"):
            Path(top, place, f"{name}.py").write_text(EVIL, encoding="ascii")
    os.makedirs(f"{top}/etc", exist_ok=True)
    Path(top, "etc/nsswitch.conf").write_text("passwd: evil files\ngroup: evil files\n", encoding="ascii")
    for folder in ("lib", "lib64", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):
        os.makedirs(f"{top}/{folder}", exist_ok=True)
        for library in ("libnss_evil.so.2", "libnss_files.so.2", "libc.so.6", "libgcc_s.so.1"):
            Path(top, folder, library).write_bytes(b"\x7fELF" + bytes(200))
    Path(top, "etc/ld.so.preload").write_text("/lib/libnss_evil.so.2\n", encoding="ascii")


@scenario
async def test_planted_modules_are_never_loaded(lab: Lab) -> None:
    async with lab.pod() as pod:
        environment = tuple((name, b"/work") for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"))
        fields = {"upper": plant_python, "working_dir": "/work", "envs": environment}
        container = await pod.run("/bin/sleep", "600", security=security(run_as_username="tester"), **fields)
        assert container.started.user is not None
        assert (container.started.user.uid, container.started.user.groups) == (1000, (1000, 50_000))
        for argv in (("/bin/true", ""), ("/bin/nope", ""), ("/etc", "")):  # failures are formatted inside the image
            for cwd in ("/work", "/etc/passwd"):
                with contextlib.suppress(StartError):
                    await pod.exec(container, *argv, cwd=cwd)
        with pytest.raises(StartError, match="user ghost: not in the image's /etc/passwd"):
            await pod.run("true", security=security(run_as_username="ghost"), **fields)
        tops = [plan.plan.root.upper for plan in pod.containers]
        assert not any(os.path.exists(f"{top}/pwned") for top in tops)
        assert (await pod.exec(container, "test -e /pwned; echo $?"))[0] == b"1\n"


# --- the runtime's files (CVE-2019-5736) ----------------------------------------------------------


def digest_of_runtime(pid: int) -> dict[str, str]:
    """Return hashes of every file that a keeper's process is made of."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").split("\n")
    files = {line.split(maxsplit=5)[5] for line in maps if len(line.split(maxsplit=5)) == 6}
    files = {path for path in files if path.startswith("/") and os.path.isfile(path)} | {
        os.path.realpath(sys.executable)
    }
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in sorted(files)}


# Only opens, writes nothing, and asks for the host by a file that is there and nowhere in a container.
ATTACK = """
while :; do
  for p in /proc/[0-9]*; do
    [ $p = /proc/$$ ] && continue
    name=
    read -r name < $p/comm
    case $name in crishim*) echo seen $name;; *) continue;; esac
    true >> $p/exe && echo REACHED exe of $name
    for file in $p/map_files/*; do
      target=$(readlink $file)
      case $target in /memfd:* | /dev/zero* | "") continue;; esac
      case $( { true 3<> $file; } 2>&1 && echo opened) in
        *opened) echo REACHED $target of $name;;
        *"Read-only file system"*) echo kept $target;;
      esac
    done
    [ -e $p/root/MARKER ] && echo REACHED the root of $name
    [ -e $p/cwd/MARKER ] && echo REACHED the directory of $name
    for fd in $p/fd/*; do
      target=$(readlink $fd)
      case $target in
        *LAB* | anon_inode:* | *cgroup* | net:* | mnt:* | pid:*) ;;
        socket:* | pipe:*) [ ${fd##*/} -le 5 ] && continue ;;  # its own: the streams, the report, the hand-over
        *) continue ;;  # files of its image and of its own /proc
      esac
      echo REACHED $fd of $name: $target
    done
  done
done 2>/dev/null
"""


@pytest.mark.parametrize("namespaces", [NamespaceOptions(), OWN_PID])
@scenario
async def test_nothing_of_the_runtime_can_be_reached(lab: Lab, namespaces: NamespaceOptions) -> None:
    async with lab.pod() as pod:
        before = digest_of_runtime(pod.keeper.pid)
        assert len(before) >= 2
        marker = Path(lab.directory, "marker")
        marker.write_text("of the host", encoding="ascii")
        added = Capabilities(add=("SYS_PTRACE", "DAC_READ_SEARCH", "CHECKPOINT_RESTORE"))
        rights = ContainerSecurity(capabilities=added, namespaces=namespaces)
        attacker = await pod.run(
            ATTACK.replace("MARKER", str(marker).lstrip("/")).replace("LAB", os.path.basename(lab.directory)),
            security=rights,
        )
        for n in range(60):
            assert (await pod.exec(attacker, "/bin/sh", "-c", f"exit {n % 5}"))[2] == n % 5
            with pytest.raises(StartError, match="exec /bin/nope: no such file or directory"):
                await pod.exec(attacker, "/bin/nope", "")
        for n in range(8):
            assert (
                await pod.complete(f"echo {n} $(cut -d' ' -f1,6 /proc/self/stat | wc -w); exit 3", security=rights)
            )[2] == 3
        await pod.logged(attacker, b"seen crishim")
        await pod.keeper.kill(attacker.id)
        await pod.ended(attacker)
        found = {line for line in attacker.output().split(b"\n") if b"REACHED" in line}
        assert found == set()
        assert b"kept /" in attacker.output()  # it did reach the host's libraries, and each is read-only
        assert digest_of_runtime(pod.keeper.pid) == before


@scenario
async def test_reaper_has_nothing_to_be_taken(lab: Lab) -> None:
    async with lab.pod() as pod:
        rights = ContainerSecurity(capabilities=Capabilities(add=("SYS_PTRACE",)))
        container = await pod.run("/bin/sleep", "600", security=rights)
        script = (
            "cat /proc/1/comm; ls -A /proc/1/root/ /proc/1/fd | wc -w; touch /proc/1/root/x; grep CapPrm /proc/1/status"
        )
        out, err, _ = await pod.exec(container, script)
        name, entries, _, permitted = out.decode().split()
        assert (name, int(permitted, 16)) == ("crishim-reaper", 0)
        assert entries == "2"  # the two names that ls puts above its lists
        assert b"Read-only file system" in err
        mounts, _, _ = await pod.exec(container, "cat /proc/1/mounts")
        assert [line.split()[2] for line in mounts.split(b"\n") if line] == [b"tmpfs"]


# --- links and files in the way of mounts ------------------------------------------------


def trap(top: str) -> None:
    """Point everything that will be mounted over to the outside or to the kernel's settings."""
    os.makedirs(f"{top}/dev")
    os.symlink("/proc/sys/kernel/core_pattern", f"{top}/dev/null")
    os.symlink("/proc/sys/kernel/core_pattern", f"{top}/dev/console")
    os.symlink("../../../../../../etc", f"{top}/dev/pts")
    os.symlink("/", f"{top}/dev/shm")
    os.makedirs(f"{top}/etc", exist_ok=True)
    os.symlink(f"../../../../../../../..{ABSENT}/dir/file", f"{top}/etc/resolv.conf")
    os.symlink("/usr/share/zoneinfo/NONE", f"{top}/etc/localtime")


@scenario
async def test_planted_links_lead_nowhere(lab: Lab) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_bytes()
    host = sorted(os.listdir("/etc")), sorted(os.listdir("/"))
    async with lab.pod() as pod:
        file = Path(lab.directory, "zone")
        file.write_text("zone", encoding="ascii")
        script = "stat -c '%t:%T %F' /dev/null; stat -c %F /dev/console; cat /etc/localtime; "
        script += f"ls {ABSENT}/dir"
        mounts = (Mount("/etc/localtime", str(file)),)
        rights = security(masked_paths=("/proc/kcore", "/proc/keys"))
        container = await pod.run(script, upper=trap, tty=True, mounts=mounts, security=rights)
        await pod.ended(container)
        lines = container.output().replace(b"\r", b"").decode().split("\n")
        assert lines == ["1:3 character special file", "character special file", "zonefile", ""]

        def settings(top: str) -> None:
            os.mkdir(f"{top}/etc")
            os.symlink("/proc/sys/kernel/core_pattern", f"{top}/etc/hostname")

        with pytest.raises(StartError, match="mount /etc/hostname: leads into /proc by a link in the image"):
            await pod.run("true", upper=settings)
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == pattern
    assert (sorted(os.listdir("/etc")), sorted(os.listdir("/"))) == host
    assert not os.path.exists(ABSENT)
    assert not os.path.exists("/usr/share/zoneinfo/NONE")


@pytest.mark.parametrize("place", ["proc", "sys", "dev"])
@scenario
async def test_link_where_a_kernel_file_system_belongs(lab: Lab, place: str) -> None:
    def link(top: str) -> None:
        os.mkdir(f"{top}/elsewhere")
        os.mknod(f"{top}/{place}", 0o600 | 0o020000, 0)  # a whiteout of the layer's directory (overlayfs.rst)
        os.unlink(f"{top}/{place}")
        os.symlink("elsewhere", f"{top}/{place}")

    async with lab.pod() as pod:
        with pytest.raises(StartError, match=f"mount /{place}: the image has a symbolic link there"):
            await pod.run("true", upper=link)


@scenario
async def test_file_where_a_directory_belongs(lab: Lab) -> None:
    async with lab.pod() as pod:
        os.makedirs(f"{lab.directory}/volume", exist_ok=True)
        Path(lab.directory, "single").write_text("x", encoding="ascii")
        with pytest.raises(StartError, match="/etc/passwd: is a file in the image, a directory must be mounted there"):
            await pod.run("true", mounts=(Mount("/etc/passwd", f"{lab.directory}/volume"),))
        with pytest.raises(StartError, match="/etc: is a directory in the image, a file must be mounted there"):
            await pod.run("true", mounts=(Mount("/etc", f"{lab.directory}/single"),))


@scenario
async def test_mounts_through_links_of_the_image_and_of_volumes(lab: Lab) -> None:
    async with lab.pod() as pod:
        for name in ("outer", "inner"):
            os.makedirs(f"{lab.directory}/{name}", exist_ok=True)
        # a second mount whose target is reached through a link in the first volume (CVE-2021-30465)
        os.symlink("/etc", f"{lab.directory}/outer/link")
        Path(lab.directory, "inner/file").write_text("inner", encoding="ascii")
        mounts: tuple[Mount, ...] = tuple(Mount(at, f"{lab.directory}/outer") for at in ("/var/run/secrets/x", "/data"))
        mounts += (Mount("/data/link/below", f"{lab.directory}/inner"),)
        out, err, code = await pod.complete("ls -d /run/secrets/x && cat /etc/below/file", mounts=mounts)
        assert (out, code) == ("/run/secrets/x\ninner", 0), err
        assert not os.path.exists("/etc/below")


@scenario
async def test_masked_and_readonly_paths(lab: Lab) -> None:
    script = """
cat /proc/keys | wc -c; ls /sys/firmware | wc -l; touch /sys/firmware/x; cat /bin/sed | wc -c; ls /etc | wc -l
test -e /proc/sys/kernel/core_pattern && true >> /proc/sys/kernel/core_pattern && echo writable
umount /proc/sys || echo kept; umount /sys/firmware || echo kept
mount -o remount,rw /proc/sys || echo kept
/bin/sed; /proc/keys
"""
    masked = ("/proc/keys", "/sys/firmware", ABSENT, "/bin/sed", "/etc")
    async with lab.pod() as pod:
        rights = security(masked_paths=masked, readonly_paths=("/proc/sys", ABSENT))
        out, err, _ = await pod.complete(script, security=rights)
        assert out.split() == ["0", "0", "0", "0", "kept", "kept", "kept"]
        assert "core_pattern: Read-only file system" in err
        assert "/bin/sed: Permission denied" in err
        assert "/proc/keys: Permission denied" in err
        open_, _, _ = await pod.complete("ls /sys/firmware | wc -l; cat /etc/passwd | wc -l", security=security())
        assert "0" not in open_.split()


@scenario
async def test_devices(lab: Lab) -> None:
    script = "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; ls /dev"
    async with lab.pod() as pod:
        out, _, _ = await pod.complete(script)
        lines = out.split("\n")
        assert lines[:6] == [
            "/dev/null 1:3 666",
            "/dev/zero 1:5 666",
            "/dev/full 1:7 666",
            "/dev/random 1:8 666",
            "/dev/urandom 1:9 666",
            "/dev/tty 5:0 666",
        ]
        names = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"}
        assert set(lines[6:-1]) == names | {"stderr", "stdin", "stdout", "tty", "urandom", "zero"}
        out, err, _ = await pod.complete("mknod /dev/mem c 1 1; head -c 1 /dev/mem; echo > /dev/full")
        assert "Operation not permitted" in err
        assert "No space left on device" in err


async def root_is_readonly(pod: Pod) -> str:
    out, err, _ = await pod.complete(
        "echo x > /file; echo y > /dev/shm/file && echo shm; echo z > /etc/hosts",
        security=security(readonly_rootfs=True),
    )
    assert err.count("Read-only file system") == 2, err
    return out


@scenario
async def test_readonly_root(lab: Lab) -> None:
    async with lab.pod() as pod:
        assert await root_is_readonly(pod) == "shm\n"
        assert (await pod.complete("echo x > /file; cat /file"))[0] == "x\n"


# --- inodes of the host (what has an fd can be changed by it) --------------------------------------

NULLS = "stat -Lc '%d:%i %t:%T' /proc/self/fd/0 /dev/null"


@pytest.mark.parametrize("user", [None, 1000])
@scenario
async def test_stdin_is_the_containers_own_null_device(lab: Lab, user: int | None) -> None:
    host = os.stat("/dev/null")
    rights = security(run_as_user=user, masked_paths=("/etc/passwd",))
    async with lab.pod() as pod:
        container = await pod.run(f"{NULLS} /etc/passwd; exec sleep 600", security=rights)
        again, _, _ = await pod.exec(container, f"{NULLS} /etc/passwd")
        await until(lambda: container.output().count(b"\n") == 3)
        for text in (container.output(), again):
            first, *others = text.decode().splitlines()
            assert others == [first, first]
            assert first.endswith(" 1:3")
            assert not first.startswith(f"{host.st_dev}:{host.st_ino} ")
        for number in range(3):
            found = os.stat(f"/proc/{container.started.pid}/fd/{number}")
            assert (found.st_dev, found.st_ino) != (host.st_dev, host.st_ino)


@pytest.mark.parametrize(
    "instead", ["true", "mkfifo /dev/null", "ln -s /etc/passwd /dev/null", "mknod /dev/null c 1 5", "mkdir /dev/null"]
)
@scenario
async def test_exec_reads_nothing_whatever_became_of_dev_null(lab: Lab, instead: str) -> None:
    async with lab.pod() as pod:
        container = await pod.run("/bin/sleep", "600")
        assert (await pod.exec(container, f"rm /dev/null; {instead}"))[2] == 0
        assert await pod.exec(container, "cat; echo end") == (b"end\n", b"", 0)


@scenario
async def test_only_paths_of_the_request_are_without_links(lab: Lab) -> None:
    """The root may be a link that an administrator made; what the request named was resolved at the create."""
    os.makedirs(f"{lab.directory}/real", exist_ok=True)
    Path(lab.directory, "real/file").write_text("ours", encoding="ascii")
    os.symlink("real", f"{lab.directory}/link")
    async with lab.pod() as pod:
        plan = pod.plan("cat /data/file", mounts=(Mount("/data", f"{lab.directory}/link"),))
        own = tuple(dataclasses.replace(m, resolved=False) if isinstance(m, Bind) else m for m in plan.mounts)
        container = await pod.start(dataclasses.replace(plan, mounts=own))
        await pod.ended(container)
        assert container.output() == b"ours"
        with pytest.raises(StartError, match="link: has become a symbolic link since the container was created"):
            await pod.run("true", mounts=(Mount("/data", f"{lab.directory}/link"),))
