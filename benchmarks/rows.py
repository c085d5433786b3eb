"""What is measured: the rows, their sizes, and the figures that each one yields."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

KIB: Final = 1024
MB: Final = 1_000_000
MIB: Final = 1024 * 1024

#: A row's answers by the process that gave them: "one", or "reader" and "writer".
Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a row. `better` says which way is good, so that every ratio above 1 is in our favour."""

    unit: str
    better: Literal["higher", "lower"]
    of: Callable[[Answers], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work, done by every contender.

    `filled` is the core (count, size) that must stand before the clock starts. `job` is what the process does, or
    what the reading one of two does while the other serves. `sync_share` is the part of the work that is enough when
    each commit waits for the disk.
    """

    name: str
    title: str
    job: Mapping[str, Any]
    figures: tuple[Figure, ...]
    filled: tuple[int, int] | None = None
    writes: bool = False
    pair: bool = False
    sync_share: float = 1.0
    serve: Mapping[str, Any] = field(default_factory=dict)


def _rate(unit: str, count: float, role: str = "one") -> Figure:
    return Figure(unit, "higher", lambda answers: count / float(answers[role]["seconds"]))


def _measured(unit: str, role: str, key: str, scale: float = 1.0) -> Figure:
    return Figure(unit, "lower", lambda answers: float(answers[role][key]) * scale)


def _latency(unit: str, percentile: int) -> Figure:
    def of(answers: Answers) -> float:
        latencies: list[float] = answers["reader"]["latencies"]
        return statistics.quantiles(latencies, n=100, method="inclusive")[percentile - 1] * 1000

    return Figure(unit, "lower", of)


def _append(name: str, title: str, count: int, in_flight_count: int, sync_share: float) -> Row:
    job = {"job": "append", "count": count, "size": KIB, "in_flight_count": in_flight_count}
    return Row(name, title, job, (_rate("blocks/s", count),), writes=True, sync_share=sync_share)


def _batches(name: str, title: str, batches: int, count: int, size: int) -> Row:
    job = {"job": "append_batches", "batches": batches, "count": count, "size": size}
    figures = (_rate("blocks/s", batches * count), _rate("MB/s", batches * count * size / MB))
    return Row(name, title, job, figures, writes=True)


def _get(name: str, title: str, count: int, filled: int, in_flight_count: int, *, random: bool) -> Row:
    job = {"job": "get", "count": count, "size": KIB, "in_flight_count": in_flight_count, "random": random}
    return Row(name, title, job, (_rate("blocks/s", count),), filled=(filled, KIB))


def _reopen(count: int) -> Row:
    size = 64
    figures = (
        _measured("ms from start of process", "one", "from_start_seconds", 1000),
        _measured("ms in a running one", "one", "seconds", 1000),
        _measured("MiB peak", "one", "peak_memory_bytes", 1 / MIB),
    )
    job = {"job": "reopen", "count": count, "size": size}
    return Row("reopen", f"reopen {count:,} blocks, get one", job, figures, filled=(count, size))


def _clone(name: str, count: int, size: int) -> Row:
    figures = (
        _rate("blocks/s", count, "reader"),
        _rate("MB/s", count * size / MB, "reader"),
        _measured("CPU s reader", "reader", "cpu_seconds"),
        _measured("CPU s writer", "writer", "cpu_seconds"),
        _measured("MiB peak reader", "reader", "peak_memory_bytes", 1 / MIB),
        _measured("MiB peak writer", "writer", "peak_memory_bytes", 1 / MIB),
    )
    job = {"job": "clone", "count": count, "size": size}
    serve = {"count": 0, "size": size, "interval_seconds": 0}
    title = f"replicate {count:,} x {size // KIB} KiB over TCP"
    return Row(name, title, job, figures, filled=(count, size), pair=True, serve=serve)


def _follow(count: int) -> Row:
    figures = (_latency("ms p50", 50), _latency("ms p99", 99))
    serve = {"count": count, "size": KIB, "interval_seconds": 0.005}
    job = {"job": "follow", "count": count}
    return Row("latency", "append to delivery, 1 KiB over TCP", job, figures, pair=True, serve=serve)


def rows(*, quick: bool) -> list[Row]:
    """All rows; `quick` ones do about a tenth of the work, for a look rather than a claim."""
    part = 10 if quick else 1
    return [
        _append("append", "append 1 KiB, awaited one by one", 5000 // part, 1, 0.1),
        _append("append-64", "append 1 KiB, 64 in flight", 20_480 // part, 64, 0.2),
        _batches("batch-1k", "append batches of 1000 x 1 KiB", 50 // part, 1000, KIB),
        _batches("batch-64k", "append batches of 64 x 64 KiB", 40 // part, 64, 64 * KIB),
        _get("get-sequential", "get 1 KiB, in order", 10_000 // part, 20_000, 1, random=False),
        _get("get-random", "get 1 KiB, at random", 10_000 // part, 20_000, 1, random=True),
        _get("get-64", "get 1 KiB, at random, 64 in flight", 20_000 // part, 20_000, 64, random=True),
        _reopen(1_000_000 // part),
        _clone("clone-1k", 20_000 // part, KIB),
        _clone("clone-64k", 4000 // part, 64 * KIB),
        _follow(1000 // part),
    ]
