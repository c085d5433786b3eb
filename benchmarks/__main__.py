"""`python -m benchmarks`: every row for us, Node 10 and Node 11, interleaved, and one table of medians and ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.rows import Answers, Row, rows

ROOT: Final = Path(__file__).parent.parent
NODE_HOMES: Final = ROOT / "tests" / "interop" / "node"
#: No job takes a tenth of this on a machine worth measuring on.
JOB_TIMEOUT_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Contender:
    """One program under test. Node never syncs, so its counterpart is our durability "none"."""

    name: str
    command: tuple[str, ...]
    durability: str | None = None

    @property
    def is_compared(self) -> bool:
        """Whether it takes part in every row; the stricter durabilities only write."""
        return self.durability in (None, "none")

    def start(self, job: Mapping[str, Any]) -> subprocess.Popen[str]:
        # Bytecode is cached as it is for an installed package, whatever this shell asks for.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["BENCH_STARTED_AT"] = str(time.time())
        return subprocess.Popen(
            [*self.command, json.dumps(job)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def job(self, row: Row) -> dict[str, Any]:
        job = dict(row.job)
        if row.writes and self.durability is not None:
            job["durability"] = self.durability
        return job


def contenders(options: Sequence[str]) -> list[Contender]:
    python = (sys.executable, "-m", "benchmarks.jobs", *options)
    bench = str(ROOT / "benchmarks" / "node" / "bench.js")
    ours = [Contender(f"ours {durability}", python, durability) for durability in ("none", "flush", "always")]
    nodes = [Contender(f"Node {v}", ("node", bench, str(NODE_HOMES / f"hypercore{v}"))) for v in (10, 11)]
    return [ours[0], *nodes, *ours[1:]]


def read_answer(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise SystemExit(f"{what} gave no answer (exit code {process.returncode})")
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


def command(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


class Workplace:
    """The cores that the contenders read, made once, and a fresh folder for each trial."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filled: dict[tuple[str, int, int], Path] = {}
        self._trials = 0

    def fresh(self) -> Path:
        self._trials += 1
        return self._folder / f"trial-{self._trials}"

    def filled(self, contender: Contender, count: int, size: int) -> Path:
        known = (contender.name, count, size)
        if known not in self._filled:
            folder = self._folder / f"filled-{len(self._filled)}"
            job = {"folder": str(folder), "count": count, "size": size}
            run_one(contender, {"job": "fill", **job})
            # The first opening after a large fill tidies up (RocksDB replays its log); the rows show the steady state.
            run_one(contender, {"job": "reopen", **job})
            self._filled[known] = folder
        return self._filled[known]


def run_one(contender: Contender, job: Mapping[str, Any]) -> dict[str, Any]:
    with contender.start(job) as process:
        answer = read_answer(process, f"{contender.name}: {job['job']}")
        process.wait(JOB_TIMEOUT_SECONDS)
    return answer


def run_pair(contender: Contender, row: Row, source: Path, copy: Path) -> Answers:
    """A writer process serves `source`, a reader process works on `copy`; both of the same make."""
    with contender.start({"job": "serve", "folder": str(source), **row.serve}) as writer:
        served = read_answer(writer, f"{contender.name}: serve")
        with contender.start({**contender.job(row), "folder": str(copy), **served}) as reader:
            what = f"{contender.name}: {row.name}"
            answer = read_answer(reader, what)
            if "ready" in answer:
                command(writer, "append")
                answer = read_answer(reader, what)
            reader.wait(JOB_TIMEOUT_SECONDS)
        command(writer, "stop")
        return {"reader": answer, "writer": read_answer(writer, f"{contender.name}: serve")}


def run_trial(contender: Contender, row: Row, place: Workplace) -> list[float]:
    """The row's figures, once. What earlier trials left in the system's write queue is not this one's to pay."""
    fresh = place.fresh()
    fresh.mkdir()
    source = place.filled(contender, *row.filled) if row.filled else fresh / "source"
    os.sync()
    answers: Answers
    try:
        if row.pair:
            answers = run_pair(contender, row, source, fresh / "copy")
        else:
            folder = fresh / "core" if row.writes else source
            answers = {"one": run_one(contender, {**contender.job(row), "folder": str(folder)})}
        return [figure.of(answers) for figure in row.figures]
    finally:
        shutil.rmtree(fresh)


Samples = dict[tuple[str, str], list[list[float]]]


def measure(chosen: Sequence[Row], taking_part: Sequence[Contender], rounds: int, place: Workplace) -> Samples:
    """Every row for every contender, `rounds` times, each round starting with another contender."""
    samples: Samples = defaultdict(list)
    for number in range(rounds):
        for row in chosen:
            turn = number % len(taking_part)
            for contender in (*taking_part[turn:], *taking_part[:turn]):
                if contender.is_compared or row.writes:
                    show_progress(f"round {number + 1}/{rounds}  {row.name}  {contender.name}")
                    samples[row.name, contender.name].append(run_trial(contender, row, place))
    show_progress("")
    return samples


def show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, end="\x1b[K\r", file=sys.stderr, flush=True)


def medians(samples: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(values) for values in zip(*samples, strict=True)]


def records(chosen: Sequence[Row], taking_part: Sequence[Contender], samples: Samples) -> list[dict[str, Any]]:
    """One record a line of the table: the medians by contender, and how many times better ours are."""
    found = []
    for row in chosen:
        by_contender = {
            c.name: medians(samples[row.name, c.name]) for c in taking_part if (row.name, c.name) in samples
        }
        for index, figure in enumerate(row.figures):
            values = {name: all_values[index] for name, all_values in by_contender.items()}
            ours = values.get("ours none")
            ratios = {}
            for name in ("Node 10", "Node 11"):
                if name in values and ours:
                    ratios[name] = ours / values[name] if figure.better == "higher" else values[name] / ours
            found.append(
                {"row": row.name, "title": row.title, "unit": figure.unit, "medians": values, "times_better": ratios}
            )
    return found


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def print_table(lines: Sequence[Mapping[str, Any]], taking_part: Sequence[Contender]) -> None:
    names = [contender.name for contender in taking_part]
    header = ["", "", *names, "x Node 10", "x Node 11"]
    table = [header]
    title = None
    for line in lines:
        values = [number(line["medians"].get(name)) for name in names]
        ratios = [f"{line['times_better'][n]:.2f}" if n in line["times_better"] else "" for n in ("Node 10", "Node 11")]
        table.append([line["title"] if line["title"] != title else "", line["unit"], *values, *ratios])
        title = line["title"]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(header))]
    for cells in table:
        left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        print("  ".join([*left, *right]).rstrip())


def parse_arguments(every: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these: {', '.join(every)}")
    parser.add_argument("--rounds", type=int, help="trials of each row; the median is shown (5, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, once: a look, no claim")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this contender (ours none, Node 11, ...)")
    parser.add_argument("--uvloop", action="store_true", help="run our side on uvloop")
    parser.add_argument("--profile", action="store_true", help="where our side spends its time, ten lines a job")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--folder", type=Path, help="where the cores lie (the system's folder for temporary files)")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(every)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return arguments


def main() -> None:
    arguments = parse_arguments([row.name for row in rows(quick=False)])
    chosen = [row for row in rows(quick=arguments.quick) if not arguments.rows or row.name in arguments.rows]
    options = [option for option in ("--uvloop", "--profile") if getattr(arguments, option.lstrip("-"))]
    taking_part = [
        contender for contender in contenders(options) if not arguments.only or contender.name in arguments.only
    ]
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    with tempfile.TemporaryDirectory(prefix="hypercore-bench-", dir=arguments.folder) as folder:
        samples = measure(chosen, taking_part, rounds, Workplace(Path(folder)))
    lines = records(chosen, taking_part, samples)
    if arguments.json:
        for line in lines:
            print(json.dumps(line))
        return
    print_table(lines, taking_part)
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    print(
        f"\nMedians of {rounds}; x is how many times better `ours none` is than Node, which never syncs either."
        f"\nPython {platform.python_version()}, Node {node or 'missing'}, {os.cpu_count()} cores."
    )


if __name__ == "__main__":
    main()
