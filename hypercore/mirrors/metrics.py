"""A mirror's status in Prometheus' words. The only module that knows prometheus-client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from hypercore.errors import MissingDriverError
from hypercore.mirrors.status import CoreStatus, MirrorStatus

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingDriverError(
        "metrics need prometheus-client, which is not installed: pip install 'hypercore-py[metrics]'"
    ) from error

_ROLES: Final = ("opening", "writer", "standby", "failed")

#: Name, what it means, and where a core's status has it.
_GAUGES: Final[tuple[tuple[str, str, Callable[[CoreStatus], float]], ...]] = (
    ("blocks_have", "Blocks of the wanted range that are stored.", lambda core: core.have),
    ("blocks_want", "Blocks of the wanted range, as far as the log's length is known.", lambda core: core.want),
    ("length_blocks", "Verified length of the log.", lambda core: core.length),
    ("fork", "How often the writer rewrote history.", lambda core: core.fork),
    ("stored_bytes", "Bytes of the blocks that are stored.", lambda core: core.stored_bytes),
    ("peers", "Peers that replicate the core.", lambda core: len(core.peers)),
    ("failing", "1 while something is wrong with the core.", lambda core: core.error is not None),
)
_COUNTERS: Final[tuple[tuple[str, str, Callable[[CoreStatus], float]], ...]] = (
    ("blocks_received", "Blocks that peers sent.", lambda core: core.blocks_received),
    ("bytes_received", "Bytes of blocks that peers sent.", lambda core: core.bytes_received),
    ("blocks_sent", "Blocks that peers were sent.", lambda core: core.blocks_sent),
    ("bytes_sent", "Bytes of blocks that peers were sent.", lambda core: core.bytes_sent),
)


def exposition(status: Callable[[], MirrorStatus]) -> Callable[[], tuple[int, str, bytes]]:
    """Answers a scrape: HTTP status, content type, body."""
    registry = CollectorRegistry()
    registry.register(_Collector(status))
    ProcessCollector(registry=registry)

    def scrape() -> tuple[int, str, bytes]:
        return 200, CONTENT_TYPE_LATEST, generate_latest(registry)

    return scrape


class _Collector(Collector):
    def __init__(self, status: Callable[[], MirrorStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return ()  # Or registering it would look at the status, before there is a mirror.

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        for name, meaning, value in _GAUGES:
            gauge = GaugeMetricFamily(f"hypercore_mirror_{name}", meaning, labels=["key"])
            for core in status.cores:
                gauge.add_metric([core.key.hex()], value(core))
            yield gauge
        for name, meaning, value in _COUNTERS:
            counter = CounterMetricFamily(f"hypercore_mirror_{name}", meaning, labels=["key"])
            for core in status.cores:
                counter.add_metric([core.key.hex()], value(core))
            yield counter
        roles = GaugeMetricFamily("hypercore_mirror_cores", "Cores by what the mirror is to them.", labels=["role"])
        for role in _ROLES:
            roles.add_metric([role], sum(core.role == role for core in status.cores))
        yield roles
        up = GaugeMetricFamily("hypercore_mirror_source_up", "0 when a source cannot be reached.", labels=["source"])
        for address, error in status.sources.items():
            up.add_metric([address], error is None)
        yield up
        yield GaugeMetricFamily("hypercore_mirror_connections", "Connections to peers.", status.connections)
        yield GaugeMetricFamily("hypercore_mirror_full", "1 when the byte cap is reached.", status.is_full)
        yield GaugeMetricFamily("hypercore_mirror_healthy", "1 when nothing is wrong.", not status.problems)
        if status.most_bytes is not None:
            yield GaugeMetricFamily("hypercore_mirror_most_bytes", "The byte cap.", status.most_bytes)
