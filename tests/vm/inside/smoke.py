"""The smoke checks: crishim on a plain Debian with systemd and cgroup v2, installed as README says, used by crictl.

One story in its order: install, serve, pull, run with limits, survive restarts of the unit and the daemon's death,
remove, stop with nothing left.
"""

import json
import os
import re
import signal
import subprocess
import tarfile
import time
from typing import Any

from tests.vm.inside.harness import Check, document, equal, holds, output, read, run, until

PAYLOAD = os.getcwd()
IMAGE = "127.0.0.1:5000/busybox:1"
GROUPS = "/sys/fs/cgroup"
UNIT_GROUP = f"{GROUPS}/system.slice/crishim.service"
POD: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "attempt": 0},
    "log_directory": "/var/log/p",
    "linux": {},
}
LIMITS = {"memory_limit_in_bytes": 64 << 20, "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512}
EXPECTED_WARNINGS = {"apparmor", "swap limits", "disk", "pressure"}
REGISTRY = {
    "version": "0.1",
    "storage": {"filesystem": {"rootdirectory": "/var/tmp/registry"}},
    "http": {"addr": "127.0.0.1:5000"},
}
COMPLAINT = re.compile(r"^\S+Z (warning|error|critical) |rehearsal|Traceback")
made: dict[str, Any] = {}


# --- installation ------------------------------------------------------------------------------------------------


def install() -> None:
    """README: a virtual environment, the program on PATH, the unit, crictl's configuration."""
    run("python3", "-m", "venv", "/opt/crishim")
    pip = ("/opt/crishim/bin/pip", "install", "-q", "--no-index", "--no-compile", "--find-links", f"{PAYLOAD}/wheels")
    run(*pip, "crishim")
    os.symlink("/opt/crishim/bin/crishim", "/usr/local/bin/crishim")
    run("install", "-m", "755", f"{PAYLOAD}/crictl", "/usr/local/bin/crictl")
    run("install", "-m", "644", f"{PAYLOAD}/manifests/crishim.service", "/etc/systemd/system/crishim.service")
    run("install", "-m", "644", f"{PAYLOAD}/manifests/crictl.yaml", "/etc/crictl.yaml")
    run("systemctl", "daemon-reload")


def damaged_batches() -> None:
    """Some seconds of `damaged`, on a tmpfs."""
    python = f"PYTHONPATH={PAYLOAD} exec /opt/crishim/bin/python -m tests.vm.inside.damaged 20"
    run("sh", "-c", f"mkdir /run/damaged && cd /run/damaged && {python}")
    equal("what is left", os.listdir("/run/damaged"), [])


def host_check() -> None:
    before = mounts(), groups(), processes()
    found = document("crishim", "check", "--json")
    bad = [row for row in found if row["level"] != "ok" and row["name"] not in EXPECTED_WARNINGS]
    holds("crishim check has findings", not bad, json.dumps(bad, indent=1))
    names = {row["name"] for row in found if row["level"] == "ok"}
    holds("it has unpacked a layer and run a container", {"unpacking", "container"} <= names, str(names))
    equal("what it leaves behind", (mounts(), groups(), processes()), before)


def unit_starts() -> None:
    run("systemctl", "start", "crishim")
    status = document("crictl", "info")["status"]["conditions"]
    equal("conditions", {row["type"]: row["status"] for row in status}, {"RuntimeReady": True, "NetworkReady": True})


def apparmor() -> None:
    """A profile that is not applied is refused, and the verbose status says that none is."""
    holds("AppArmor is on", read("/sys/module/apparmor/parameters/enabled") == "Y")
    config = {**POD, "linux": {"security_context": {"apparmor": {"profile_type": 2, "localhost_ref": "k8s"}}}}
    done = run("crictl", "runp", file(config), status=1)
    holds("the refusal names the field", "linux.security_context.apparmor" in done.stderr, done.stderr)
    holds("verbose status tells", "unconfined" in json.dumps(document("crictl", "info").get("apparmor")))


# --- images ------------------------------------------------------------------------------------------------------


def pull() -> None:
    """Busybox goes to a registry through crishim, is removed, and comes back by a pull."""
    path = "/var/tmp/registry.json"
    with open(path, "w", encoding="utf-8") as text:
        json.dump(REGISTRY, text)  # JSON is YAML
    made["registry"] = subprocess.Popen(
        ["docker-registry", "serve", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with tarfile.open("/var/tmp/busybox.tar", "w") as archive:
        archive.add("/bin/busybox", "bin/busybox")
        for name in ("sh", "sleep", "cat", "echo", "dd", "tail", "mknod", "id", "wget", "httpd"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    run("crishim", "import", "-q", "-i", "/var/tmp/busybox.tar", IMAGE)
    until("the registry answers", lambda: run("crishim", "push", IMAGE, status=None).returncode == 0)
    run("crishim", "rmi", IMAGE)
    equal("images after rmi", document("crictl", "images", "-o", "json")["images"], [])
    run("crictl", "pull", IMAGE)
    equal("images after the pull", document("crictl", "images", "-o", "json")["images"][0]["repoTags"], [IMAGE])


# --- pods and containers -----------------------------------------------------------------------------------------


def pod_with_limits() -> None:
    made["pod"] = output("crictl", "runp", file(pod("p")))
    script = "echo started; i=0; while true; do i=$((i+1)); sleep 1; done"
    made["container"] = container = start("main", script, LIMITS)
    made["pid"] = pid = inspect(container)["info"]["pid"]
    group = group_of(pid)
    made["group"] = group
    found = {name: read(f"{group}/{name}") for name in ("memory.max", "cpu.max", "cpu.weight")}
    wanted = {"memory.max": str(64 << 20), "cpu.max": "50000 100000"}
    equal("limits", {name: found[name] for name in wanted}, wanted)
    holds("cpu.weight was set", found["cpu.weight"] != "100", str(found))


def unit_holds_the_daemon_alone() -> None:
    equal("processes of the unit", read(f"{UNIT_GROUP}/cgroup.procs"), str(daemon()))
    below = [entry.name for entry in os.scandir(UNIT_GROUP) if entry.is_dir()]
    equal("groups below the unit's", below, [])


def execs_and_logs() -> None:
    equal("exec", output("crictl", "exec", "--sync", made["container"], "echo", "hello"), "hello")
    equal(
        "exit code", run("crictl", "exec", "--sync", made["container"], "sh", "-c", "exit 3", status=None).returncode, 1
    )
    equal("logs", output("crictl", "logs", made["container"]), "started")


def network() -> None:
    server = start("web", "echo from-the-pod >/index.html; exec httpd -f -p 8080 -h /", {})
    address = document("crictl", "inspectp", made["pod"])["status"]["network"]["ip"]
    other = output("crictl", "runp", file(pod("q")))
    client = start("client", "sleep 1000", {}, sandbox=other, of="q")

    command = ("crictl", "exec", "--sync", client, "wget", "-q", "-O", "-", f"http://{address}:8080/")
    sockets = f"/proc/{inspect(server)['info']['pid']}/net/tcp"
    until("the server listens", lambda: ":1F90 " in read(sockets) + read(f"{sockets}6"))
    equal("what one pod gets of another", output(*command), "from-the-pod")
    run("crictl", "rmp", "-f", other)
    run("crictl", "rm", "-f", server)


def devices() -> None:
    done = run("crictl", "exec", "--sync", made["container"], "sh", "-c", "mknod /m c 1 1; cat /m", status=None)
    holds("a device that is not allowed", "not permitted" in done.stdout + done.stderr, done.stdout + done.stderr)
    equal(
        "one that is",
        output("crictl", "exec", "--sync", made["container"], "sh", "-c", "echo x >/dev/null; echo y"),
        "y",
    )


def stats() -> None:
    row = document("crictl", "stats", "-o", "json", made["container"])["stats"][0]
    holds("memory is counted", int(row["memory"]["workingSetBytes"]["value"]) > 0, json.dumps(row))
    holds("time is counted", int(row["cpu"]["usageCoreNanoSeconds"]["value"]) > 0, json.dumps(row))


def oom_killed() -> None:
    container = start(
        "hungry", "exec tail /dev/zero", {"memory_limit_in_bytes": 16 << 20, "memory_swap_limit_in_bytes": 16 << 20}
    )
    status = ended(container)
    equal("its end", (status["reason"], status["exitCode"]), ("OOMKilled", 137))
    run("crictl", "rm", container)


# --- restarts ----------------------------------------------------------------------------------------------------


def restart() -> None:
    before = daemon()
    run("systemctl", "restart", "crishim")
    holds("another daemon", daemon() != before)
    still_works("after a restart")


def unit_kill() -> None:
    """`systemctl kill` signals all processes of the unit: the daemon is the only one."""
    before = daemon()
    run("systemctl", "kill", "--signal=KILL", "crishim")
    until("systemd starts it again", lambda: daemon() not in {0, before} and answers())
    still_works("after systemctl kill")


def daemon_killed() -> None:
    before = daemon()
    os.kill(before, signal.SIGKILL)
    until("systemd starts it again", lambda: daemon() not in {0, before} and answers())
    still_works("after kill -9")


def stopped_and_started() -> None:
    run("systemctl", "stop", "crishim")
    until("the spawner has ended", lambda: "crishim-spawner" not in names())
    holds("the container goes on", os.path.isdir(f"/proc/{made['pid']}"))
    run("systemctl", "start", "crishim")
    still_works("after stop and start")


def still_works(when: str) -> None:
    equal(f"its process {when}", inspect(made["container"])["info"]["pid"], made["pid"])
    equal(f"its state {when}", inspect(made["container"])["status"]["state"], "CONTAINER_RUNNING")
    equal(f"exec {when}", output("crictl", "exec", "--sync", made["container"], "echo", when), when)
    other = start("more", "exit 5", {})
    equal(f"another container's end {when}", ended(other)["exitCode"], 5)
    run("crictl", "rm", other)
    unit_holds_the_daemon_alone()


# --- the end -----------------------------------------------------------------------------------------------------


def removal() -> None:
    run("crictl", "stopp", made["pod"])
    equal("its end", inspect(made["container"])["status"]["state"], "CONTAINER_EXITED")
    run("crictl", "rmp", made["pod"])
    until("the group is gone", lambda: not os.path.exists(made["group"]))
    equal("pods", document("crictl", "pods", "-o", "json")["items"], [])
    equal("pinned namespaces", os.listdir("/run/crishim/ns"), [])
    equal("pods' directories", os.listdir("/run/crishim/pods"), [])


def nothing_was_wrong() -> None:
    """The daemon's log has no warning but those that this story causes."""
    rows = output("journalctl", "-u", "crishim", "-o", "cat", "--no-pager").split("\n")
    bad = [row for row in rows if COMPLAINT.search(row) and "profile 'k8s'" not in row]
    holds("the log has complaints", not bad, "\n".join(bad))


def stop() -> None:
    run("systemctl", "stop", "crishim")
    equal("result", output("systemctl", "show", "-P", "Result", "crishim"), "success")
    until("all processes have ended", lambda: not [name for name in names() if name.startswith("crishim")])
    equal("mounts", [line for line in mounts() if "crishim" in line], [])
    equal("control groups", [name for name in groups() if "crishim" in name], [])
    equal("links", [row["ifname"] for row in document("ip", "-j", "link")], ["lo"])
    holds("no nftables table", "crishim" not in output("nft", "list", "tables"))


# --- tools -------------------------------------------------------------------------------------------------------


def evidence() -> str:
    """Return what helps to see why something failed."""
    return "\n".join(
        [
            *output("journalctl", "-u", "crishim", "-o", "cat", "--no-pager").split("\n")[-80:],
            run("systemctl", "status", "--no-pager", "crishim", status=None).stdout,
            run("sh", "-c", "dmesg | tail -20", status=None).stdout,
        ]
    )


def file(config: object) -> str:
    path = f"/var/tmp/{time.monotonic_ns()}.json"
    with open(path, "w", encoding="utf-8") as text:
        json.dump(config, text)
    return path


def pod(name: str) -> dict[str, Any]:
    return {**POD, "metadata": {**POD["metadata"], "name": name}}


def start(name: str, script: str, resources: dict[str, int], sandbox: str = "", of: str = "p") -> str:
    config = {
        "metadata": {"name": name},
        "image": {"image": IMAGE},
        "command": ["/bin/sh", "-c", script],
        "log_path": f"{name}.log",
        "linux": {"resources": resources},
    }
    container = output("crictl", "create", sandbox or made["pod"], file(config), file(pod(of)))
    run("crictl", "start", container)
    return container


def inspect(container: str) -> Any:
    return document("crictl", "inspect", container)


def ended(container: str) -> Any:
    until("the container ends", lambda: inspect(container)["status"]["state"] == "CONTAINER_EXITED")
    return inspect(container)["status"]


def group_of(pid: int) -> str:
    return GROUPS + read(f"/proc/{pid}/cgroup").removeprefix("0::")


def daemon() -> int:
    return int(output("systemctl", "show", "-P", "MainPID", "crishim"))


def answers() -> bool:
    return run("crictl", "version", status=None).returncode == 0


def names() -> list[str]:
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                found.append(read(f"/proc/{pid}/comm"))
            except OSError:
                continue
    return found


def processes() -> list[str]:
    return sorted(name for name in names() if name.startswith("crishim"))


def mounts() -> list[str]:
    return read("/proc/self/mountinfo").split("\n")


def groups() -> list[str]:
    return sorted(path for path, _, _ in os.walk(GROUPS) if "system.slice/systemd-" not in path)


_POD = ("install", "unit starts", "pull", "pod with limits")
CHECKS = [
    Check("install", install),
    Check("crishim check", host_check, ("install",)),
    Check("damaged batches", damaged_batches, ("install",)),
    Check("unit starts", unit_starts, ("install",)),
    Check("AppArmor profile is refused", apparmor, ("unit starts",)),
    Check("pull", pull, ("unit starts",)),
    Check("pod with limits", pod_with_limits, ("pull",)),
    Check("unit holds the daemon alone", unit_holds_the_daemon_alone, _POD),
    Check("exec and logs", execs_and_logs, _POD),
    Check("network between pods", network, _POD),
    Check("devices are denied", devices, _POD),
    Check("stats", stats, _POD),
    Check("OOMKilled", oom_killed, _POD),
    Check("systemctl restart", restart, _POD),
    Check("systemctl kill", unit_kill, _POD),
    Check("kill -9 of the daemon", daemon_killed, _POD),
    Check("systemctl stop, then start", stopped_and_started, _POD),
    Check("removal", removal, _POD),
    Check("log without complaints", nothing_was_wrong, ("unit starts",)),
    Check("systemctl stop", stop, ("unit starts", "removal")),
]
