"""The rows: what each is called, its unit, its budget and with whom it is compared.

Budgets are those of the design's table. `ratio` says how many times better crishim's median is than the reference's
(lower or higher is better, as the row says), except where the budget itself is a multiple of the reference: then it
is crishim's median divided by the reference's. Out of scope: measuring.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.benchlib.measure import Summary

SUBJECT = "crishim"
CONTAINERD = "containerd+runc"
CONTAINERD_PIGZ = "containerd+pigz"
CRIO = "cri-o+runc"
FLOOR = "C floor"
RUNC = "runc"
CRUN = "crun"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report.

    Args:
        name: how it is asked for.
        unit: of all its figures.
        what: one line for the reader.
        budget: limit of crishim's median in `unit`, None if there is none.
        more: whether more is better.
        reference: the system that `ratio` is about.
        multiple: the budget is this many times the reference's median (crishim may cost that much).
        factor: the budget also wants crishim to be this many times better than the reference; alone it is the budget.
    """

    name: str
    unit: str
    what: str
    budget: float | None = None
    more: bool = False
    reference: str = CONTAINERD
    multiple: float | None = None
    factor: float | None = None


ROWS = (
    Row("engine", "ms", "create+start+wait+delete of /bin/true, own netns, back to back", reference=FLOOR, multiple=2),
    Row("engine-quiet", "ms", "the same, each after 1 s of quiet", reference=FLOOR, multiple=2),
    Row("pod-start", "ms", "RunPodSandbox+CreateContainer+StartContainer with network", 12, factor=10),
    Row("pod-start-cpu", "ms", "CPU time of one pod start, all processes", 12),
    Row("exec", "ms", "ExecSync of true", 5),
    Row("stop-remove", "ms", "StopPodSandbox+RemovePodSandbox", 8),
    Row("network", "ms", "the pod's attach and detach with the embedded network: its own times", 6),
    Row("network-cni", "ms", "the same with bridge, host-local and portmap"),
    Row("pod-cni", "ms", "RunPodSandbox+StopPodSandbox+RemovePodSandbox with these plugins", factor=1),
    Row("burst", "pods/s", "110 pods, 10 at a time", 100, more=True),
    Row("teardown", "s", "stop and remove of 110 pods, 10 at a time", 1),
    Row("list-containers", "ms", "ListContainers, 110 pods", 1),
    Row("list-sandboxes", "ms", "ListPodSandbox, 110 pods", 1),
    Row("stats", "ms", "ListPodSandboxStats, 110 pods", 15),
    Row("memory-pod", "MB", "per pod of 110: PSS and page tables after a start, three execs, 10,000 lines", 2.0),
    Row("memory-rest", "MB", "daemon and its helpers without pods", 60),
    Row("memory-110", "MB", "daemon and its helpers with 110 pods", 75),
    Row("cpu-idle", "%", "CPU of everything with 110 idle pods", 0.2),
    Row("cpu-lists", "%", "the same with both lists each second, as kubelet does", 1),
    Row("log", "MB/s", "one container's 100-byte lines to a complete CRI log", 250, more=True),
    Row("pull", "s", "pull and unpack of 300 MB in 20,000 files from a local registry", 1.5, factor=1 / 0.35),
    Row("pull-cpu", "s", "CPU time of that pull, all processes", factor=1 / 0.60),
    Row("pull-memory", "MB", "growth of what all processes hold during that pull, at its peak", 60),
    Row("restart", "ms", "kill -9 of the daemon to its first answer, 50 pods", 300),
)
NAMES = tuple(row.name for row in ROWS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a row comes to: the limit in the row's unit, whether it is kept, the ratio to the reference."""

    budget: float | None
    met: bool | None
    ratio: float | None


def judge(row: Row, systems: Mapping[str, Summary]) -> Verdict:
    """Return the verdict; what cannot be known for want of a system is None."""
    own, other = systems.get(SUBJECT), systems.get(row.reference)
    budget = row.budget
    if row.multiple is not None:
        budget = row.multiple * other.median if other else None
    ratio = _ratio(row, own, other)
    verdicts = []
    if own is not None and budget is not None:
        verdicts.append(own.median >= budget if row.more else own.median <= budget)
    if row.factor is not None and ratio is not None:
        verdicts.append(ratio >= row.factor)
    return Verdict(budget, all(verdicts) if verdicts else None, ratio)


def _ratio(row: Row, own: Summary | None, other: Summary | None) -> float | None:
    if own is None or other is None:
        return None
    above, below = (own, other) if row.more or row.multiple is not None else (other, own)
    return above.median / below.median if below.median else None
