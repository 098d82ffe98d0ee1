"""Damaged batches: an agent may fail at them, its keeper and other agents may not.

    python -m tests.vm.inside.damaged SECONDS [SEED]

A damaged batch is calls of the host's root, so this runs in a machine that is thrown away, and nowhere else. It is a
keeper with two agents: one gets batches, areas and doorbells with faults in them, the other one is asked after each
whether it goes on. Whatever the first one does, the keeper's side must answer with a result or one of its exceptions.
"""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from crishim.engine.agent import area, births, layout, pods, starts
from crishim.engine.agent.batch import Batch
from crishim.linux import calls
from crishim.linux.seccomp.tables import numbers

MACHINE = os.uname().machine
_PATIENCE = 0.3
_SURE = 20.0
_ANSWERS = (area.BatchFailedError, area.NoAnswerError, ValueError, RuntimeError)
# not against an agent, but against the machine that this runs in, or against this process
_NEVER = {
    numbers(MACHINE)[name]
    for name in (
        "reboot", "kexec_load", "kexec_file_load", "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
        "pidfd_send_signal", "ptrace", "process_vm_writev", "prlimit64", "umount2", "pivot_root", "mount", "move_mount",
        "swapon", "swapoff", "init_module", "finit_module", "delete_module", "vhangup", "acct", "quotactl", "syslog",
        "sched_setscheduler", "sched_setattr", "setpriority", "ioprio_set", "clock_settime", "settimeofday", "iopl",
    )
    if name in numbers(MACHINE)
}  # fmt: skip


class Pair(NamedTuple):
    """An agent with its process."""

    agent: area.Agent
    pid: int


def main(words: list[str]) -> int:
    """Run for so many seconds; return the exit status."""
    if not thrown_away():
        print("damaged: this machine is not one to be thrown away (a guest's kernel command line has ` crishim.guest`)")
        return 2
    seconds, seed = float(words[0]), int(words[1]) if len(words) > 1 else random.randrange(1 << 30)
    calls.unshare(calls.CLONE_NEWNS)
    calls.mount("", "/", "", calls.MS_REC | calls.MS_PRIVATE)
    dice = random.Random(seed)
    until = time.monotonic() + seconds
    with Keeper() as keeper:
        rounds = 0
        while time.monotonic() < until:
            rounds += 1
            damage = dice.choice(DAMAGES)
            try:
                keeper.round(dice, damage)
            except Exception:
                print(f"damaged: round {rounds} of seed {seed} ({damage.__name__}) failed", flush=True)
                raise
        print(f"damaged: {rounds} rounds of seed {seed}, {keeper.replaced} agents replaced, {keeper.failed} refused")
    return 0


def thrown_away() -> bool:
    """Tell whether this is a guest of ours, or a kernel that runs as a process."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        if "User Mode Linux" in file.read():
            return True
    with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
        return "crishim.guest" in file.read().split()


class Keeper:
    """A bell, an agent that is well, and one that is not for long."""

    def __init__(self) -> None:
        self._number = 0
        self.replaced = 0
        self.failed = 0
        self._program = births.make_program(MACHINE)
        self._bell = area.Bell("damaged-keeper.sock")
        self._well = self._start()
        self._victim = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._well)
        self._end(self._victim)
        self._bell.close()
        os.close(self._program)

    def round(self, dice: random.Random, damage: Callable[["Keeper", random.Random, area.Agent], None]) -> None:
        """Do one damage to the victim; then the other one must answer, and the victim too, or be replaced."""
        try:
            damage(self, dice, self._victim.agent)
        except _ANSWERS:
            self.failed += 1
        self._victim.agent.failed()
        self._ask(self._well, _SURE)
        try:
            self._ask(self._victim, _PATIENCE)
        except _ANSWERS:
            self._end(self._victim)
            self.replaced += 1
            self._victim = self._start()
            self._ask(self._victim, _SURE)

    def run(self, content: bytes, agent: area.Agent, fds: list[int]) -> None:
        """Have the victim run something."""
        for fd in self._bell.run(agent, content, fds, _PATIENCE):
            os.close(fd)

    def ring(self, agent: area.Agent, number: int, fds: list[int]) -> None:
        """Ring without a batch; take what comes."""
        self._bell.ring(agent, number, fds)
        time.sleep(0.001)
        for answer in self._bell.answers():
            for fd in answer.fds:
                os.close(fd)
        self._bell.forget(agent)

    def _ask(self, pair: Pair, patience: float) -> None:
        batch = _batch()
        batch.call("getpid")
        if not pair.agent.done():
            for fd in self._bell.take_over(pair.agent, (), patience):
                os.close(fd)
        for fd in self._bell.run(pair.agent, batch.finish().content, (), patience):
            os.close(fd)
        if pair.agent.result(0) != pair.pid:
            raise area.NoAnswerError(f"{pair.agent.name}: is another process, or none")

    def _start(self) -> Pair:
        self._number += 1
        name = f"damaged-{self._number}"
        sock, fd = births.make_socket(f"{name}.sock"), births.make_area(f"{name}.area")
        pid = births.start(self._program, sock.fileno(), fd)
        sock.close()
        pair = Pair(area.Agent(f"{name}.sock", fd), pid)
        self._bell.run(pair.agent, pods.settled(MACHINE, os.getpid()).finish().content, (), _SURE)
        return pair

    def _end(self, pair: Pair) -> None:
        self._bell.forget(pair.agent)
        os.kill(pair.pid, signal.SIGKILL)
        os.waitpid(pair.pid, 0)
        pair.agent.close()
        for kind in ("sock", "area"):
            os.unlink(f"{pair.agent.name.removesuffix('.sock')}.{kind}")


# --- the damages ---------------------------------------------------------------------------------------------------


def flipped_bits(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """Some bits of a batch are others."""
    content = bytearray(_content(dice))
    for _ in range(dice.choice((1, 1, 2, 8, 64))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    keeper.run(_harmless(content), agent, [])


def wild_words(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """Some words of records are others: addresses that are not there, of the area's head, of the agent's code."""
    content = bytearray(_content(dice))
    values = (
        0,
        1,
        -1,
        layout.AREA,
        layout.AREA + 8,
        layout.AREA + layout.AREA_SIZE - 4,
        0x400000,
        layout.SLOT,
        1 << 47,
    )
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(content) // 8) * 8
        value = dice.choice((*values, dice.getrandbits(64)))
        content[at : at + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
    keeper.run(_harmless(content), agent, [])


def truncated(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """A batch ends too early, and what follows is noise or a batch of before."""
    content = _content(dice)
    rest = dice.randbytes(400) if dice.randrange(2) else b""
    keeper.run(_harmless(bytearray(content[: dice.randrange(1, len(content))] + rest)), agent, [])


def too_long(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """A batch that does not fit into an area."""
    keeper.run(_content(dice) + bytes(layout.AREA_SIZE), agent, [])


def damaged_head(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """The head of the area is another, as a batch may leave it that writes there."""
    where = dice.randrange(8, layout.FIRST)
    mapped = agent._map
    mapped[where : where + 1] = bytes([dice.randrange(256)])
    keeper.run(_content(dice), agent, [])


def wrong_numbers(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """Doorbells for batches that are not there."""
    for _ in range(dice.randrange(1, 8)):
        keeper.ring(agent, dice.choice((0, 1, agent.word(layout.DONE), 1 << 63, dice.getrandbits(64))), [])


def many_descriptors(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """More descriptors than anybody wants, with a batch and without."""
    fds = [0] * dice.choice((1, 20, 100, 253))
    for _ in range(dice.randrange(1, 6)):
        if dice.randrange(2):
            keeper.ring(agent, 0, fds)
        else:
            keeper.run(_content(dice), agent, fds)


def strange_datagrams(_keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """Doorbells of no or another length, from sockets without a name, and from ones that are gone."""
    for _ in range(dice.randrange(1, 12)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            if dice.randrange(2):
                stranger.bind("")
            stranger.setblocking(False)
            try:
                stranger.sendto(dice.randbytes(dice.choice((0, 1, 7, 8, 9, 16, 4000))), agent.name)
            except OSError:
                return


def wanted_descriptors(keeper: Keeper, dice: random.Random, agent: area.Agent) -> None:
    """Answers that are to bring descriptors which are not there."""
    agent.want([dice.choice((0, 3, 40, 999, -1, 1 << 30)) for _ in range(dice.randrange(1, 200))])
    keeper.run(_content(dice), agent, [])


DAMAGES = (
    flipped_bits, flipped_bits, flipped_bits, wild_words, wild_words, truncated, too_long, damaged_head, damaged_head,
    wrong_numbers, many_descriptors, strange_datagrams, wanted_descriptors,
)  # fmt: skip


def _batch() -> Batch:
    return Batch(MACHINE, layout.AREA + layout.FIRST)


def _content(dice: random.Random) -> bytes:
    kind = dice.randrange(5)
    if kind == 0:
        return pods.namespaces(MACHINE, ("ipc", "uts"), 1 << 20).finish().content
    if kind == 1:
        return pods.names(MACHINE, "name", "").finish().content
    if kind == 2:
        needs = (layout.Stage.SLOT, layout.Stage.REPORT)
        return starts.bear(MACHINE, needs, calls.CLONE_NEWNS).fill(slot_size=layout.PAGE)
    batch = _batch()
    room = batch.room(256)
    for _ in range(dice.randrange(1, 20)):
        fd = batch.call("openat", calls.AT_FDCWD, batch.text("/proc/self/stat"), os.O_RDONLY, 0)
        batch.call("pread64", fd, room, 256, 0)
        batch.call("close", fd)
    return batch.finish().content


def _harmless(content: bytearray) -> bytes:
    """Return a batch without the calls that are meant for the whole machine."""
    for at in range(0, len(content) - layout.RECORD + 1, layout.RECORD):
        if int.from_bytes(content[at : at + 4], "little") in _NEVER:
            content[at : at + 4] = numbers(MACHINE)["getpid"].to_bytes(4, "little")
    return bytes(content)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
