"""Containers' processes over the real engine: starts, ends, signals, failures, and what a process inherits."""

import dataclasses
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.client import StartError
from crishim.engine.plan.types import ContainerPlan
from crishim.linux import capabilities
from crishim.linux.rlimits import NUMBERS
from crishim.request import (
    Capabilities,
    ContainerSecurity,
    GroupsPolicy,
    ImageConfig,
    NamespaceMode,
    NamespaceOptions,
    Resources,
)
from tests.support.lab import IMAGE, OWN_PID, Lab, Pod, lives, open_lab, scenario, until

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


def security(**fields: object) -> ContainerSecurity:
    return ContainerSecurity(namespaces=OWN_PID, **fields)  # type: ignore[arg-type]


# --- ends -----------------------------------------------------------------------------------------


@scenario
async def test_exit_codes_and_times(lab: Lab) -> None:
    async with lab.pod() as pod:
        # an own shell for the signal: process 1 of a PID namespace ignores what it does not handle
        codes = {"exit 0": 0, "exit 7": 7, "exit 255": 255, "sh -c 'kill -TERM $$; sleep 60'; exit $?": 143}
        for script, code in codes.items():
            container = await pod.run(script)
            ended = await pod.ended(container)
            assert (ended.exit_code, ended.oom_killed) == (code, False)
            assert ended.finished_at >= container.started.started_at > 0
            assert container.started.user is not None
            assert (container.started.user.uid, container.started.user.groups) == (0, (0,))
        assert [pod.exits[c.id].seq for c in pod.containers] == [1, 2, 3, 4]


@scenario
async def test_signals(lab: Lab) -> None:
    async with lab.pod() as pod:
        traps = await pod.run("trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done")
        shared = await pod.run("/bin/sleep", "600", security=ContainerSecurity())
        stays = await pod.run("exec sleep 600")
        await pod.logged(traps, b"up")
        await pod.keeper.signal(traps.id, signal.SIGTERM)
        assert (await pod.ended(traps)).exit_code == 9
        await pod.keeper.signal(shared.id, signal.SIGUSR1)
        assert (await pod.ended(shared)).exit_code == 128 + signal.SIGUSR1
        await pod.keeper.signal(stays.id, signal.SIGKILL)
        assert (await pod.ended(stays)).exit_code == 137
        await pod.keeper.signal(stays.id, signal.SIGTERM)  # one that has ended is fine
        await pod.keeper.kill("0" * 64)


@scenario
async def test_frozen_and_stopped_containers_can_be_killed(lab: Lab) -> None:
    async with lab.pod() as pod:
        stopped = await pod.run("sleep 600 & sleep 600")
        os.kill(stopped.started.pid, signal.SIGSTOP)
        frozen = await pod.run("exec sleep 600")
        directories = frozen.plan.cgroup.directories
        for directory in directories:
            for file, value in (("cgroup.freeze", "1"), ("freezer.state", "FROZEN")):
                if os.path.exists(f"{directory}/{file}"):
                    Path(directory, file).write_text(value, encoding="ascii")
        for container in (stopped, frozen):
            await pod.keeper.kill(container.id)
            assert (await pod.ended(container)).exit_code == 137
        assert not lives(stopped.started.pid)


@scenario
async def test_memory_limit(lab: Lab) -> None:
    async with lab.pod() as pod:
        limit = Resources(memory_limit_in_bytes=16 * MIB)
        itself = await pod.run("exec dd if=/dev/zero of=/dev/null bs=200M", resources=limit)
        killed = await pod.run("kill -9 $$; sleep 600", security=ContainerSecurity())
        ended = await pod.ended(itself)
        assert (ended.exit_code, ended.oom_killed) == (137, True)
        ended = await pod.ended(killed)
        assert (ended.exit_code, ended.oom_killed) == (137, False)


@scenario
async def test_pids_limit(lab: Lab) -> None:
    settings = dataclasses.replace(lab.planner.settings, pids_limit=8)
    lab.planner.settings, kept = settings, lab.planner.settings
    try:
        async with lab.pod() as pod:
            script = "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 600 & done; echo all"
            container = await pod.run(script)
            await pod.ended(container)
            assert b"can't fork" in container.output("stderr")
            assert container.output() == b""
    finally:
        lab.planner.settings = kept


# --- PID namespaces -------------------------------------------------------------------------------


@scenario
async def test_own_pid_namespace(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("sleep 600 & echo $$ $!; wait")
        await pod.logged(container, b"1 2")
        out, _, _ = await pod.exec(container, "echo /proc/[0-9]*")
        assert b"/proc/1" in out
        assert f"/proc/{container.started.pid}".encode() not in out.split()
        await pod.keeper.signal(container.id, signal.SIGKILL)
        await pod.ended(container)


@scenario
async def test_pod_shares_a_pid_namespace(lab: Lab) -> None:
    async with lab.pod() as pod:
        shared = ContainerSecurity()
        first = await pod.run("exec sleep 600", security=shared)
        second = await pod.run("exec sleep 601", security=shared)
        out, _, _ = await pod.exec(second, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert b"sleep 600" in out
        assert b"sleep 601" in out
        # process 1 is the pod's reaper, which no signal of a container ends
        await pod.exec(second, "kill -TERM 1; kill -INT 1; kill -USR1 1; (setsid sleep 0.05 &) ; exit 0")
        await pod.keeper.kill(first.id)
        assert (await pod.ended(first)).exit_code == 137
        out, _, code = await pod.exec(second, "sleep 0.2; grep -l 'State:.Z' /proc/[0-9]*/status; cat /proc/1/comm")
        assert (out, code) == (b"crishim-reaper\n", 0)
        third = await pod.run("sleep 600 & exit 3", security=shared)
        assert (await pod.ended(third)).exit_code == 3
        members = third.plan.cgroup.directories[0]
        await until(lambda: not os.path.exists(members))  # what it left behind was killed with it


@scenario
async def test_host_and_target_pid_namespaces(lab: Lab) -> None:
    async with lab.pod() as pod:
        host = ContainerSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.NODE))
        out, _, _ = await pod.complete("readlink /proc/self/ns/pid", security=host)
        assert out.strip() == os.readlink("/proc/self/ns/pid")
        main = await pod.run("exec sleep 600")
        target = NamespaceOptions(pid=NamespaceMode.TARGET, target_id=main.id)
        out, _, _ = await pod.complete("tr '\\0' ' ' < /proc/1/cmdline", security=ContainerSecurity(namespaces=target))
        assert out == "sleep 600 "
        gone = NamespaceOptions(pid=NamespaceMode.TARGET, target_id="f" * 64)
        with pytest.raises(StartError, match="the target container does not run"):
            await pod.run("true", security=ContainerSecurity(namespaces=gone))


# --- failures to start -----------------------------------------------------------------------


def plant(top: str) -> None:
    os.makedirs(f"{top}/opt/directory")
    for name, data, mode in (
        ("data", b"no program\n", 0o644),
        ("foreign", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(200), 0o755),
        ("lost", b"#!/no/such/interpreter\n", 0o755),
        ("empty", b"", 0o755),
    ):
        Path(top, "opt", name).write_bytes(data)
        os.chmod(f"{top}/opt/{name}", mode)


FAILURES = {
    "nope": "exec nope: executable file not found in $PATH",
    "/bin/nope": "exec /bin/nope: no such file or directory",
    "/opt/data": "exec /opt/data: permission denied",
    "data": "exec data: permission denied (not executable)",
    "/opt/directory": "exec /opt/directory: is a directory",
    "/opt/foreign": "exec /opt/foreign: exec format error (another architecture, or a script without #!)",
    "/opt/empty": "exec /opt/empty: exec format error (another architecture, or a script without #!)",
    "/opt/lost": "exec /opt/lost: its interpreter (the #! line's, or the dynamic loader) does not exist in the image",
    "/opt/data/x": "exec /opt/data/x: not a directory",
}


async def gone(plan: ContainerPlan) -> None:
    await until(lambda: not any(map(os.path.exists, plan.cgroup.directories)))


@scenario
async def test_start_failures_name_the_path(lab: Lab) -> None:
    image = ImageConfig(env=("PATH=/bin:/opt",))
    async with lab.pod() as pod:
        runs = await pod.run("/bin/sleep", "600", image=image, upper=plant)
        for program, sentence in FAILURES.items():
            plan = pod.plan(program, "argument", image=image, upper=plant)
            with pytest.raises(StartError) as caught:
                await pod.start(plan)
            assert str(caught.value) == sentence
            assert caught.value.errno != 0
            await gone(plan)
            with pytest.raises(StartError) as caught:
                await pod.exec(runs, program, "argument")
            assert str(caught.value) == sentence
        assert pod.exits == {}
        assert (await pod.exec(runs, "true"))[2] == 0


@scenario
async def test_directory_and_user_failures(lab: Lab) -> None:
    async with lab.pod() as pod:
        cases = {
            "working directory /etc/passwd: is a file": {"working_dir": "/etc/passwd"},
            "working directory /etc/passwd/x: is a file": {"working_dir": "/etc/passwd/x"},
            "user ghost: not in the image's /etc/passwd": {"security": security(run_as_username="ghost")},
        }
        for sentence, fields in cases.items():
            with pytest.raises(StartError) as caught:
                await pod.run("/bin/true", **fields)  # type: ignore[arg-type]
            assert str(caught.value) == sentence
        with pytest.raises(StartError, match=f"{lab.directory}/none/log: no such file or directory"):
            await pod.run("/bin/true", log=f"{lab.directory}/none/log")


# --- the cwd trick and leaked descriptors ----------------------------------------------------


@scenario
async def test_only_three_descriptors(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("ls /proc/self/fd; exec sleep 600", stdin=True)
        await pod.logged(container, b"3\n")
        # 3 is the directory that ls itself reads
        assert container.output() == b"0\n1\n2\n3\n"
        out, _, _ = await pod.exec(container, "/bin/ls", "/proc/self/fd")
        assert out == b"0\n1\n2\n3\n"


@scenario
async def test_working_directory_and_program_through_descriptors(lab: Lab) -> None:
    def links(top: str) -> None:
        os.mkdir(f"{top}/opt")
        for number in range(81):
            os.symlink(f"/proc/self/fd/{number}", f"{top}/opt/{number}")

    # whatever is open in the child: by it a process could stand below a mask, or on a side that is still writable
    rights = security(masked_paths=("/proc/acpi", "/sys/firmware"), readonly_paths=("/proc/sys", "/proc/bus"))
    async with lab.pod() as pod:
        runs = await pod.run("/bin/sleep", "600", security=rights, upper=links)
        for number in range(81):
            links_too = (f"/opt/{number}",) if number % 8 == 0 else ()
            for directory in (f"/proc/self/fd/{number}", *links_too):
                attempts = (
                    pod.complete("/bin/pwd", "", working_dir=directory, security=rights, upper=links),
                    pod.exec(runs, "/bin/pwd", "", cwd=directory),
                )
                for attempt in attempts:
                    try:
                        place = str((await attempt)[0])
                    except StartError as error:
                        place = str(error)
                        assert place.startswith(f"working directory {directory}: ")
                    else:  # the number of an fd of the look-up itself: by its name, a directory of the container's
                        assert re.search(r"/proc/\d+/fd\b", place), place
            with pytest.raises(StartError):
                await pod.exec(runs, f"/proc/self/fd/{number}/kernel/../../bin/true", "")
        for directory in ("/proc/self/cwd", "/proc/self/root", "/proc/thread-self/cwd"):
            with pytest.raises(StartError, match=f"working directory {directory}: "):
                await pod.exec(runs, "/bin/pwd", cwd=directory)


@scenario
async def test_script_that_names_its_runtime(lab: Lab) -> None:
    def evil(top: str) -> None:
        os.mkdir(f"{top}/opt")
        Path(top, "opt/script").write_text("#!/proc/self/exe\n", encoding="ascii")
        os.chmod(f"{top}/opt/script", 0o755)
        os.symlink("/proc/self/exe", f"{top}/opt/link")

    async with lab.pod() as pod:
        runs = await pod.run("/bin/sleep", "600", upper=evil)
        for program in ("/opt/script", "/opt/link", "/proc/self/exe"):
            for attempt in (lambda p=program: pod.run(p, upper=evil), lambda p=program: pod.exec(runs, p)):
                try:
                    await attempt()
                except StartError:
                    continue
        # whatever ran was a sealed copy that cannot be written; the containers' next processes are their own
        assert (await pod.exec(runs, "echo fine"))[0] == b"fine\n"


# --- what a process inherits -----------------------------------------------------------------

SHOW = """
grep -E '^(SigIgn|SigBlk|SigCgt|NoNewPrivs|Seccomp):' /proc/self/status
echo umask $(umask)
echo nice $(cut -d' ' -f19 /proc/self/stat)
echo oom $(cat /proc/self/oom_score_adj)
echo nofile $(ulimit -n) $(ulimit -Hn) core $(ulimit -c)
echo cwd $(pwd)
"""


@scenario
async def test_nothing_of_the_daemon_is_inherited(lab: Lab) -> None:
    async with lab.pod() as pod:
        resources = Resources(oom_score_adj=500)
        (nofile,) = [limit for limit in lab.planner.settings.rlimits if limit.resource == NUMBERS["NOFILE"]]
        container = await pod.run(SHOW + "env; exec sleep 600", resources=resources)
        await pod.logged(container, b"PWD=")
        main = container.output().decode().split("\n")
        again, _, _ = await pod.exec(container, SHOW + "env")
        for lines in (main, again.decode().split("\n")):
            assert {line.split(":")[1].strip() for line in lines if line.startswith(("SigIgn", "SigBlk"))} == {"0" * 16}
            assert "umask 0022" in lines
            assert "nice 0" in lines
            assert "oom 500" in lines
            assert f"nofile {nofile.soft} {nofile.hard} core 0" in lines
            assert "cwd /" in lines
            names = {line.partition("=")[0] for line in lines if "=" in line}
            assert names - {"SHLVL", "PWD", "_", "OLDPWD"} == {"PATH", "IMAGE", "HOME", "HOSTNAME"}
        out, _, _ = await pod.exec(container, "yes | head -n 1; echo done")
        assert out == b"y\ndone\n"


@scenario
async def test_own_session_and_keyring(lab: Lab) -> None:
    async with lab.pod() as pod:
        # to this id, which nothing else here has, /proc/keys shows only what it possesses (keyrings(7))
        rights = security(run_as_user=987654)
        script = "cut -d' ' -f1,5,6 /proc/self/stat; grep ' _ses' /proc/keys"
        container = await pod.run(f"{script}; exec sleep 600", security=rights)
        await pod.logged(container, b"_ses")
        assert os.getsid(container.started.pid) == container.started.pid
        again, _, _ = await pod.exec(container, script)
        serials = set()
        for text in (container.output(), again):
            stat, *keys = text.decode().strip().split("\n")
            assert stat.split()[1] != "0"
            assert len(keys) == 1
            serials.add(keys[0].split()[0])
        assert len(serials) == 2


# --- capabilities ----------------------------------------------------------------------------

SETS = "grep ^Cap /proc/self/status"


def parsed(text: str | bytes) -> dict[str, int]:
    decoded = text.decode() if isinstance(text, bytes) else text
    return {line[3:6]: int(line.split(":")[1], 16) for line in decoded.split("\n") if line.startswith("Cap")}


@pytest.mark.parametrize(
    ("asked", "user", "bounding", "effective", "ambient"),
    [
        (Capabilities(), None, capabilities.DEFAULT, capabilities.DEFAULT, ()),
        (Capabilities(), 1000, capabilities.DEFAULT, (), ()),
        (Capabilities(add=("net_admin",)), 1000, (*capabilities.DEFAULT, "NET_ADMIN"), (), ()),
        (
            Capabilities(add=("CAP_KILL",), drop=("ALL",)),
            None,
            ("KILL",),
            ("KILL",),
            (),
        ),
        (Capabilities(drop=("ALL",)), None, (), (), ()),
        (
            Capabilities(drop=("ALL",), add_ambient=("NET_BIND_SERVICE",)),
            1000,
            ("NET_BIND_SERVICE",),
            ("NET_BIND_SERVICE",),
            ("NET_BIND_SERVICE",),
        ),
    ],
)
@scenario
async def test_capability_sets(
    lab: Lab,
    asked: Capabilities,
    user: int | None,
    bounding: tuple[str, ...],
    effective: tuple[str, ...],
    ambient: tuple[str, ...],
) -> None:
    async with lab.pod() as pod:
        for no_new_privs in (False, True):
            rights = security(capabilities=asked, run_as_user=user, no_new_privs=no_new_privs)
            container = await pod.run(f"{SETS}; exec sleep 600", security=rights)
            await pod.logged(container, b"CapAmb")
            again, _, _ = await pod.exec(container, SETS)
            allowed = lab.facts.bounding
            expected = {
                "Inh": capabilities.mask(ambient) & allowed,
                "Prm": capabilities.mask(effective) & allowed,
                "Eff": capabilities.mask(effective) & allowed,
                "Bnd": capabilities.mask(bounding) & allowed,
                "Amb": capabilities.mask(ambient) & allowed,
            }
            assert parsed(container.output()) == expected
            assert parsed(again) == expected
            out, _, _ = await pod.exec(container, "grep NoNewPrivs /proc/self/status")
            assert out.split()[-1] == (b"1" if no_new_privs else b"0")


@scenario
async def test_privileged_has_all_that_is_to_be_had(lab: Lab) -> None:
    async with lab.pod() as pod:
        out, _, _ = await pod.complete(SETS, security=security(privileged=True))
        sets = parsed(out)
        assert (sets["Prm"], sets["Bnd"], sets["Inh"]) == (lab.facts.bounding, lab.facts.bounding, 0)


# --- users, HOME, working directory ------------------------------------------------------

WHO = "id -u; id -g; id -G; echo home=$HOME; pwd"


async def who(pod: Pod, **fields: object) -> list[str]:
    out, err, code = await pod.complete(WHO, **fields)
    assert code == 0, err
    return out.split("\n")[:-1]


@scenario
async def test_users_groups_and_home(lab: Lab) -> None:
    async with lab.pod() as pod:
        assert await who(pod) == ["0", "0", "0", "home=/root", "/"]
        by_name = await who(pod, image=dataclasses.replace(IMAGE, user="www-data:1004"))
        assert by_name == ["33", "1004", "1004", "home=/var/www", "/"]
        unknown = await who(pod, image=dataclasses.replace(IMAGE, user="4242"))
        assert unknown == ["4242", "0", "0", "home=/", "/"]
        groups = {"run_as_user": 1000, "run_as_group": 3000, "supplemental_groups": (4000,)}
        merged = await who(pod, security=security(**groups))
        assert merged == ["1000", "3000", "3000 4000 50000", "home=/home/tester", "/"]
        strict = await who(pod, security=security(**groups, supplemental_groups_policy=GroupsPolicy.STRICT))
        assert strict[:3] == ["1000", "3000", "3000 4000"]
        empty = await who(pod, envs=(("HOME", b""),))
        assert empty[3] == "home="


@scenario
async def test_working_directories(lab: Lab) -> None:
    def private(top: str) -> None:
        os.makedirs(f"{top}/srv/own", 0o700)
        os.chown(f"{top}/srv/own", 1000, 1000)

    async with lab.pod() as pod:
        assert (await who(pod, working_dir="/new/made"))[-1] == "/new/made"
        assert (await who(pod, working_dir="relative/one"))[-1] == "/relative/one"
        drop = Capabilities(drop=("ALL",))
        owner = security(run_as_user=1000, capabilities=drop)
        assert (await who(pod, working_dir="/srv/own", security=owner, upper=private))[-1] == "/srv/own"
        # root without DAC_OVERRIDE enters what root may enter
        assert (await who(pod, working_dir="/root", security=security(capabilities=drop)))[-1] == "/root"


@scenario
async def test_exec_has_the_rights_of_its_own_user(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("exec sleep 600", security=security(run_as_user=1000))
        out, _, _ = await pod.exec(container, "id -u; echo $HOME; echo x > /proc/self/fd/1; echo y > /dev/stderr")
        assert out == b"1000\n/home/tester\nx\n"
