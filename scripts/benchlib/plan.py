"""Which groups of rows are run, in which order and with how many samples; a failing group does not stop the others."""

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator

import grpc

from scripts.benchlib import engines, lone, networks, oci, pods, population, pulls
from scripts.benchlib.measure import Samples
from scripts.benchlib.registry import Registry
from scripts.benchlib.rows import CONTAINERD, CONTAINERD_PIGZ, CRIO, SUBJECT
from scripts.benchlib.setting import Setting
from scripts.benchlib.systems import Containerd, ContainerdPigz, Crio, Crishim, CrishimCni, System


def run(wanted: Iterable[str], setting: Setting, samples: Samples) -> None:
    """Measure every row of `wanted`."""
    rows = frozenset(wanted)
    with Registry(f"{setting.cache}/registry", setting.scratch) as registry:
        small = oci.busybox(setting.scratch)
        registry.push("busybox", small)
        registry.push("pause", oci.pause(setting.scratch))
        makers = _makers(setting, registry)
        runtimes = makers | _crio(setting, registry)
        if rows & engines.ROWS:
            with _survived("engine", samples):
                engines.measure(setting, small, samples, rows)
        if rows & pods.ROWS:
            _pods(runtimes, setting, samples)
        if rows & networks.ROWS:
            _networks(rows, makers, registry, setting, samples)
        _one_by_one(rows, makers, runtimes, setting, samples)
        if rows & pulls.ROWS:
            _pulls(rows, makers, registry, setting, samples)


def _makers(setting: Setting, registry: Registry) -> dict[str, Callable[[], System]]:
    makers: dict[str, Callable[[], System]] = {}
    if setting.asked(SUBJECT):
        makers[SUBJECT] = lambda: Crishim(registry)
    if setting.asked(CONTAINERD) and setting.peers.containerd and setting.peers.runc:
        makers[CONTAINERD] = lambda: Containerd(registry, setting.peers)
    return makers


def _crio(setting: Setting, registry: Registry) -> dict[str, Callable[[], System]]:
    """CRI-O, for the rows of pods: where one is started, used and looked at, alone or among many."""
    found = setting.peers
    there = setting.asked(CRIO) and found.crio and found.conmon and found.runc and found.plugins
    return {CRIO: lambda: Crio(registry, found)} if there else {}


def _pods(makers: dict[str, Callable[[], System]], setting: Setting, samples: Samples) -> None:
    """All systems at once, so that their samples can be taken in turn."""
    with contextlib.ExitStack() as stack:
        systems = []
        for name, make in makers.items():
            with _survived(f"pods on {name}", samples):
                systems.append(stack.enter_context(make()))
        with _survived("pods", samples):
            pods.measure(systems, samples, setting.times(25), lambda what: _survived(what, samples))


def _networks(
    rows: frozenset[str],
    makers: dict[str, Callable[[], System]],
    registry: Registry,
    setting: Setting,
    samples: Samples,
) -> None:
    plugins = setting.peers.plugins
    with contextlib.ExitStack() as stack, _survived("network", samples):
        if "network" in rows and SUBJECT in makers:
            networks.attach("network", stack.enter_context(makers[SUBJECT]()), samples, setting.times(25))
    if not rows & {"network-cni", "pod-cni"} or plugins is None:
        return
    with contextlib.ExitStack() as stack, _survived("network with CNI", samples):
        systems: list[System] = []
        if SUBJECT in makers:
            systems.append(stack.enter_context(CrishimCni(registry, plugins)))
            networks.attach("network-cni", systems[0], samples, setting.times(25))
        if CONTAINERD in makers:
            systems.append(stack.enter_context(makers[CONTAINERD]()))
        networks.sandboxes(systems, samples, setting.times(25))


def _one_by_one(
    rows: frozenset[str],
    makers: dict[str, Callable[[], System]],
    runtimes: dict[str, Callable[[], System]],
    setting: Setting,
    samples: Samples,
) -> None:
    """Groups for which each system is alone on the machine, with a fresh instance."""
    groups: list[tuple[frozenset[str], dict[str, Callable[[], System]], Callable[[System], None]]] = [
        (population.ROWS, runtimes, lambda system: population.measure(system, samples, setting.times(3), rows)),
        (frozenset({"log"}), makers, lambda system: lone.log(system, samples, setting.times(5))),
        (frozenset({"restart"}), makers, lambda system: lone.restart(system, samples, setting.times(5))),
    ]
    for members, measured, measure in groups:
        if not rows & members:
            continue
        for name, make in measured.items():
            with _survived(f"{', '.join(sorted(rows & members))} on {name}", samples), make() as system:
                measure(system)


def _pulls(
    rows: frozenset[str],
    makers: dict[str, Callable[[], System]],
    registry: Registry,
    setting: Setting,
    samples: Samples,
) -> None:
    if not registry.holds("big"):
        registry.push("big", oci.big())
    registry.warm()
    if setting.asked(CONTAINERD_PIGZ) and CONTAINERD in makers and setting.peers.pigz:
        makers = {**makers, CONTAINERD_PIGZ: lambda: ContainerdPigz(registry, setting.peers)}
    reference = registry.reference("big")
    with _survived("pull", samples):
        pulls.measure(
            makers, reference, setting.scratch, setting.times(5), samples, rows, lambda what: _survived(what, samples)
        )


@contextlib.contextmanager
def _survived(what: str, samples: Samples) -> Iterator[None]:
    """Turn a failure into a note, so that the rest of the run goes on."""
    try:
        yield
    except grpc.RpcError as error:
        samples.note(f"{what}: failed: {error.code().name}: {error.details()}")
    except (OSError, RuntimeError, ValueError) as error:
        samples.note(f"{what}: failed: {error}")
    except Exception as error:  # noqa: BLE001  one group's fault must not cost the other figures
        place = traceback.extract_tb(error.__traceback__)[-1]
        samples.note(f"{what}: failed: {type(error).__name__}: {error} ({place.filename}:{place.lineno})")
