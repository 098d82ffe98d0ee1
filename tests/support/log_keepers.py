"""Writers, an agent and its keepers for a log's test: `python -m tests.support.log_keepers DIRECTORY COUNT KILLS`.

This process holds the pipes, as an agent does. Writers flood them with numbered lines, each in a process of its own.
One keeper after another takes the output of all, and is killed by SIGKILL at any time; logs are rotated meanwhile. At
the end the last keeper drains, and the number of lines that each writer wrote to each stream is printed as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from typing import cast

from crishim.engine.keeper.logs import LogFile
from crishim.engine.keeper.loop import Loop
from crishim.engine.keeper.staging import Output
from crishim.engine.keeper.state import State
from crishim.engine.messages import ContainerRecord

STREAMS = ("stdout", "stderr")
_LONG = 30_000


def line(stream: str, number: int) -> bytes:
    """Return a writer's line; some are longer than a record."""
    filler = b"." * (_LONG if number % 5003 == 5002 else number * 7919 % 150)
    return b"%s %d %s\n" % (stream.encode(), number, filler)


class Container:
    """What is held of one."""

    def __init__(self, directory: str, number: int) -> None:
        self.log = f"{directory}/{number}.log"
        self.state = f"{directory}/c-{number}"
        self.pipes = {name: os.pipe() for name in STREAMS}
        self.staging = os.pipe()
        self.report, report = os.pipe()
        State.make(self.state, cast("ContainerRecord", {"id": str(number), "log_path": self.log})).close()
        self.writer = os.fork()
        if self.writer == 0:
            flood([writing for _, writing in self.pipes.values()], report)
        for _, writing in self.pipes.values():
            os.close(writing)
        os.close(report)


def flood(pipes: list[int], report: int) -> None:
    """Write lines to both streams, cut anywhere, until SIGTERM; then say how many."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    chance = random.Random(os.getpid())
    counts = [0, 0]
    while not stopped:
        for n, name in enumerate(STREAMS):
            lines = chance.choice((1, 3, 200, 900))
            data = b"".join(line(name, counts[n] + i) for i in range(lines))
            counts[n] += lines
            while data:
                cut = chance.choice((7, 4096, 65_536))
                data = data[os.write(pipes[n], data[:cut]) :]
        time.sleep(0.002)
    os.write(report, json.dumps(dict(zip(STREAMS, counts, strict=True))).encode())
    os._exit(0)


def keep(containers: list[Container], rotated: list[Container], last: bool) -> None:
    """Be a keeper: adopt all, reopen the logs that were rotated, serve; if it is the last one, to the end."""
    loop = Loop()
    outputs = []
    for container in containers:
        reading, writing = container.staging
        output = Output(loop, LogFile.adopt(container.log), State.load(container.state), (reading, writing))
        output.recover()
        for name, (fd, _) in container.pipes.items():
            output.add(name, fd)
        if container in rotated:
            loop.later(0.003, output.reopen)
        outputs.append(output)
    if last:
        loop.later(0.5, loop.stop)
    loop.run()
    for output in outputs:
        output.drain()
    os._exit(0)


def born(containers: list[Container], rotated: list[Container], *, last: bool = False) -> int:
    """Fork a keeper."""
    pid = os.fork()
    if pid == 0:
        try:
            keep(containers, rotated, last)
        finally:
            os._exit(1)
    return pid


def main(directory: str, count: int, kills: int) -> None:
    """Run the whole."""
    chance = random.Random(kills)
    containers = [Container(directory, number) for number in range(count)]
    for n in range(kills):
        rotated = chance.sample(containers, 3)
        for container in rotated:
            if os.path.exists(container.log):
                os.rename(container.log, f"{container.log}.{n:03}")
        keeper = born(containers, rotated)
        time.sleep(chance.uniform(0.005, 0.06))
        os.kill(keeper, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(keeper, 0)[1]) == signal.SIGKILL
    keeper = born(containers, [], last=True)
    for container in containers:
        os.kill(container.writer, signal.SIGTERM)
    counts = []
    for container in containers:
        counts.append(json.loads(os.read(container.report, 1000)))
        os.waitpid(container.writer, 0)
    assert os.waitpid(keeper, 0)[1] == 0
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
