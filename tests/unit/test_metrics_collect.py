"""What /metrics shows: names, labels, values, and the table in the documents."""

import re
from pathlib import Path

import structlog
from prometheus_client.parser import text_string_to_metric_families

from crishim.metrics import catalog
from crishim.metrics.metrics import Metrics
from crishim.observe import Observer
from crishim.server.interceptors import RpcObserver

ROOT = Path(__file__).resolve().parents[2]


def exercised() -> Metrics:
    metrics = Metrics()
    metrics.watch(catalog.PODS, lambda: {("READY",): 2, ("NOTREADY",): 0})
    metrics.watch(catalog.CONTAINERS, lambda: {("RUNNING",): 3})
    metrics.watch(catalog.KEEPERS, lambda: {(): 2})
    metrics.rpc_started("Version")
    metrics.rpc_started("Version")
    metrics.rpc_finished("Version", "OK", 0.0003)
    metrics.start_phase("network", 0.004)
    metrics.image_pull(outcome="ok", seconds=1.5)
    metrics.image_received(1000)
    metrics.image_pull(outcome="NOT_FOUND", seconds=0.1)
    metrics.image_push(outcome="ok", seconds=0.5)
    metrics.image_sent(70)
    metrics.leak_reclaimed("mount", 3)
    metrics.event_merged()
    metrics.degraded("oom_score_adj")
    metrics.watch(
        catalog.NETWORK_ADDRESSES, lambda: {("ipv4", "used"): 3, ("ipv4", "free"): 250, ("ipv6", "free"): 2**64}
    )
    metrics.network_attach("embedded", 0.003)
    metrics.network_detach("cni", 0.2)
    metrics.network_error("bridge", "11")
    return metrics


async def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    text = (await metrics.render()).decode()
    return {
        (sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_everything_that_is_observed_is_shown() -> None:
    found = await samples(exercised())
    expected = {
        ("crishim_rpcs_total", "code=OK,method=Version"): 1,
        ("crishim_rpc_duration_seconds_count", "code=OK,method=Version"): 1,
        ("crishim_rpcs_in_flight", "method=Version"): 1,
        ("crishim_pods", "state=READY"): 2,
        ("crishim_pods", "state=NOTREADY"): 0,
        ("crishim_containers", "state=RUNNING"): 3,
        ("crishim_keepers", ""): 2,
        ("crishim_start_phase_duration_seconds_sum", "step=network"): 0.004,
        ("crishim_image_pulls_total", "outcome=ok"): 1,
        ("crishim_image_pulls_total", "outcome=cached"): 0,
        ("crishim_image_pulls_total", "outcome=NOT_FOUND"): 1,
        ("crishim_image_pull_received_bytes_total", ""): 1000,
        ("crishim_image_pull_duration_seconds_count", "outcome=ok"): 1,
        ("crishim_image_pushes_total", "outcome=ok"): 1,
        ("crishim_image_push_duration_seconds_sum", "outcome=ok"): 0.5,
        ("crishim_image_push_sent_bytes_total", ""): 70,
        ("crishim_leaks_reclaimed_total", "kind=mount"): 3,
        ("crishim_events_merged_total", ""): 1,
        ("crishim_degraded_total", "what=oom_score_adj"): 1,
        ("crishim_network_attach_duration_seconds_sum", "kind=embedded"): 0.003,
        ("crishim_network_detach_duration_seconds_count", "kind=cni"): 1,
        ("crishim_network_errors_total", "code=11,plugin=bridge"): 1,
        ("crishim_network_addresses", "family=ipv4,state=used"): 3,
        ("crishim_network_addresses", "family=ipv4,state=free"): 250,
        ("crishim_network_addresses", "family=ipv6,state=free"): 2**64,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["process_open_fds", ""] > 0
    assert [key for key in found if key[0] == "crishim_build_info"]


async def test_buckets_reach_from_a_quarter_of_a_millisecond_to_two_minutes() -> None:
    found = await samples(exercised())
    bounds = [
        re.search(r"le=([^,]+)", labels)[1]  # type: ignore[index]
        for name, labels in found
        if name == "crishim_start_phase_duration_seconds_bucket"
    ]
    assert (bounds[0], bounds[-2:]) == ("0.00025", ["120.0", "+Inf"])
    assert found["crishim_start_phase_duration_seconds_bucket", "le=0.0025,step=network"] == 0
    assert found["crishim_start_phase_duration_seconds_bucket", "le=0.005,step=network"] == 1


async def test_the_catalog_is_what_is_shown() -> None:
    text = (await exercised().render()).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert kinds == {spec.name: spec.kind.value for spec in catalog.ALL}
    for spec in catalog.OWN:
        assert helps[spec.name] == spec.help
    for family in text_string_to_metric_families(text):
        (spec,) = [
            item for item in catalog.ALL if item.name.removesuffix("_total") == family.name.removesuffix("_total")
        ]
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels), sample


def test_the_readme_holds_the_table() -> None:
    assert Metrics.table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_label_can_hold_a_name_of_an_object() -> None:
    labels = {label for spec in catalog.ALL for label in spec.labels}
    assert labels == {
        "method", "code", "state", "step", "outcome", "kind", "what", "version", "cri_version", "python_version",
        "plugin", "family",
    }  # fmt: skip


async def test_plugins_cannot_make_series_without_end() -> None:
    metrics = Metrics()
    for code in range(1000):
        metrics.network_error("odd", str(code))
    metrics.network_error("odd", "3")
    found = await samples(metrics)
    series = {key: value for key, value in found.items() if key[0] == "crishim_network_errors_total"}
    assert len(series) == 65
    assert series["crishim_network_errors_total", "code=3,plugin=odd"] == 2
    assert series["crishim_network_errors_total", "code=other,plugin=other"] == 1000 - 64


async def test_a_source_that_fails_costs_its_own_series_only() -> None:
    metrics = Metrics()
    metrics.watch(catalog.PODS, lambda: {("READY",): 1})
    metrics.watch(catalog.CONTAINERS, lambda: {("RUNNING",): 1 // 0})
    metrics.watch(catalog.KEEPERS, lambda: {(): 7})
    with structlog.testing.capture_logs() as lines:
        found = await samples(metrics)
    assert found["crishim_pods", "state=READY"] == 1
    assert found["crishim_keepers", ""] == 7
    assert not [key for key in found if key[0] == "crishim_containers"]
    assert [line["metric"] for line in lines] == ["crishim_containers"]


async def test_two_daemons_in_one_process_do_not_share_figures() -> None:
    first, second = Metrics(), Metrics()
    first.event_merged(5)
    assert (await samples(first))["crishim_events_merged_total", ""] == 5
    assert (await samples(second))["crishim_events_merged_total", ""] == 0


async def test_it_is_both_observers() -> None:
    metrics = Metrics()
    below: Observer = metrics
    server: RpcObserver = metrics
    below.event_merged()
    server.rpc_started("Version")
    found = await samples(metrics)
    assert found["crishim_events_merged_total", ""] == 1
    assert found["crishim_rpcs_in_flight", "method=Version"] == 1
