"""clipchoir beside the usual ways of serving the same encoders: the seed's PyTorch, FastAPI, LitServe, BentoML.

    python -m benchmarks.peers.run            # a quarter of an hour; writes results/peers.md and peers.json
    python -m benchmarks.peers.run --quick    # under eight minutes once the peers are installed; prints the same tables

All candidates have the same ONNX files, the same JPEGs (224x224), the same scores (checked before anything is timed),
and the same load generator, which shares the cores with them. They take turns; who has no turn is stopped (SIGSTOP).
Each peer is installed into build/peers/NAME once. Ctrl-C prints what was measured until then.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import random
import sys
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.common.fixtures import BASE, DEMO, build_base
from benchmarks.common.in_process import CORES, InProcess, Way, draw
from benchmarks.peers.apps.pipeline import Settings
from benchmarks.peers.candidates import TITLES, TRIED, PeerFailedError, Seed, Server, check, describe, ours, peer, seed
from benchmarks.peers.environments import PINNED, SHARED, EnvironmentFailedError, python_of, versions_of
from benchmarks.peers.load import poisson
from benchmarks.peers.report import OURS_CLIENT, Candidate, Pair, Setting, percentile, report
from clipchoir import ClipchoirError
from clipchoir_server.triton import ServerError

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results" / "peers"
OFFERED = 0.6  # of the slowest server's throughput
OVERLOAD = 10  # times the requests in flight of the saturation
UNDECODABLE = 3  # row
PACKAGES = ("clipchoir", "nvidia-pytriton", "tritonclient", "torch", *SHARED)
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Plan:
    """What to measure of a pair.

    Attributes:
        batch: images per request.
        in_flight: requests, each tried; the best is the saturation.
        rounds: of everything.
        seconds: of each measurement.
        offered: seconds of load at a fixed rate, in each round; 0: none.
        single: images one by one, in each round.
        overload: seconds; 0: none.
        tune: seconds for each setting of a peer; 0 takes the first one.
        seed_images: of one pass of the seed's way.
        seed_workers: of its DataLoader, each tried.
    """

    batch: int
    in_flight: tuple[int, ...]
    rounds: int
    seconds: float
    offered: float
    single: int
    overload: float
    tune: float
    seed_images: int
    seed_workers: tuple[int, ...]


PLANS = {
    "demo": Plan(32, (2, 4), 2, 4.0, 10.0, 40, 5.0, 2.0, 1024, (0, CORES)),
    "base": Plan(8, (2,), 2, 16.0, 0.0, 6, 0.0, 0.0, 16, (0,)),
}
QUICK = {
    "demo": Plan(32, (2, 4), 3, 2.0, 3.0, 20, 2.0, 0.0, 384, (0,)),
    "base": Plan(8, (2,), 1, 10.0, 0.0, 3, 0.0, 0.0, 16, (0,)),
}


@dataclass
class Bench:
    """Measures one pair; what it finds is in `pair` at any time."""

    repository: Path
    plan: Plan
    pair: Pair
    images: list[bytes] = field(default_factory=draw)

    def __post_init__(self) -> None:
        size = self.plan.batch
        self.batches = [self.images[start : start + size] for start in range(0, len(self.images), size)]

    def steps(self) -> int:
        """For the progress bar, about."""
        servers, rounds = len(TITLES) + 2, self.plan.rounds
        tuned = sum(len(tried) for tried in TRIED.values()) if self.plan.tune else 0
        measured = servers * rounds * (len(self.plan.in_flight) + bool(self.plan.offered) + 1)
        return tuned + measured + rounds * len(self.plan.seed_workers) + servers * bool(self.plan.overload)

    def run(self) -> Iterator[str]:
        """Yields what was just done."""
        limit = InProcess(self.repository, Way(1, CORES, spinning=False, side_by_side=False))
        self.expected = limit.run(self.batches[0])
        del limit
        with contextlib.ExitStack() as stack:
            servers = []
            for name in TITLES:
                try:
                    settings = yield from self._tune(name)
                    server = stack.enter_context(peer(name, settings))
                    check(server, self.batches[0], self.expected)
                except (EnvironmentFailedError, PeerFailedError) as error:
                    self.pair.missing[TITLES[name]] = str(error)
                    console.print(str(error), style="red", markup=False)
                    continue
                servers.append(server)
                self._warm_up(server)
                server.pause()
            triton = stack.enter_context(ours(self.repository))
            check(triton, self.batches[0], self.expected)
            self._warm_up(triton)
            triton.pause()
            servers = [triton, replace(triton, name=OURS_CLIENT, by_client=True), *servers]
            seeds = [
                stack.enter_context(seed(self.repository, self.plan.batch, each)) for each in self.plan.seed_workers
            ]
            for server in servers:
                candidate = self.pair.candidates.setdefault(server.name, Candidate())
                candidate.settings = describe(server.settings) if server.settings else ""
            self.pair.candidates = {server.name: self.pair.candidates[server.name] for server in servers}
            yield from self._saturation(servers, seeds)
            yield from self._offered(servers)
            yield from self._single(servers)
            yield from self._overload(servers)

    def _warm_up(self, server: Server) -> None:
        """BentoML learns how long a batch takes from its first requests."""
        server.target([[image] for image in self.images]).one_by_one(24 if server.name == TITLES["bentoml"] else 4)

    def _tune(self, name: str) -> Generator[str, None, Settings]:
        """The best setting of a peer; returns it."""
        tried = [replace(each, repository=str(self.repository)) for each in TRIED[name]]
        if not self.plan.tune:
            return tried[0]
        found: dict[Settings, Setting] = {}
        for settings in tried:
            with peer(name, settings) as server:
                self._warm_up(server)
                load = server.target(self.batches).closed_loop(2 * CORES, self.plan.tune)
                single = server.target([[image] for image in self.images]).one_by_one(self.plan.single)
            what = describe(settings)
            found[settings] = Setting(what, load.images_per_second, percentile([single], 0.5))
            self.pair.candidates.setdefault(TITLES[name], Candidate()).tried.append(found[settings])
            yield f"{self.pair.name}, {TITLES[name]}, {what}: {load.images_per_second:.1f} images/s"
        return max(found, key=lambda settings: found[settings].images_per_second)

    def _saturation(self, servers: list[Server], seeds: list[Seed]) -> Iterator[str]:
        for number in range(self.plan.rounds):
            for in_flight in self.plan.in_flight:
                for server in _in_turn(servers, number):
                    with server.awake():
                        target = server.target(self.batches)
                        target.one_by_one(2)  # what was stopped finds its way back into memory
                        load = target.closed_loop(in_flight, self.plan.seconds)
                    self.pair.candidates[server.name].saturation.setdefault(in_flight, []).append(load)
                    yield f"{self._round(number)}{server.name}, {in_flight} in flight: " + (
                        f"{load.images_per_second:.1f} images/s" + (f", {load.errors}" if load.errors else "")
                    )
            for each in seeds:
                rate = each.run(self.plan.seed_images, self.expected)
                self.pair.seed.setdefault(each.workers, []).append(rate)
                yield f"{self._round(number)}PyTorch, {each.workers} DataLoader workers: {rate:.1f} images/s"

    def _offered(self, servers: list[Server]) -> Iterator[str]:
        if not self.plan.offered:
            return
        slowest = min(each.throughput(each.best()) for each in self.pair.candidates.values() if each.best())
        self.pair.rate = OFFERED * slowest / self.plan.batch
        for number in range(self.plan.rounds):
            times = poisson(self.pair.rate, self.plan.offered, number)
            for server in _in_turn(servers, number):
                with server.awake():
                    target = server.target(self.batches)
                    target.one_by_one(2)
                    load = target.open_loop(times)
                self.pair.candidates[server.name].offered.append(load)
                p99 = 1000 * percentile([load], 0.99)
                yield f"{self._round(number)}{server.name}, {self.pair.rate:.2f} requests/s: p99 {p99:.0f} ms"

    def _single(self, servers: list[Server]) -> Iterator[str]:
        for number in range(self.plan.rounds):
            for server in _in_turn(servers, number):
                with server.awake():
                    target = server.target([[image] for image in self.images])
                    target.one_by_one(2)
                    load = target.one_by_one(self.plan.single)
                self.pair.candidates[server.name].single.append(load)
                yield f"{self._round(number)}{server.name}, single image: {1000 * percentile([load], 0.5):.1f} ms"

    def _overload(self, servers: list[Server]) -> Iterator[str]:
        """And one undecodable image."""
        if not self.plan.overload:
            return
        self.pair.overload_in_flight = in_flight = OVERLOAD * max(each.best() for each in self.pair.candidates.values())
        for server in servers:
            candidate = self.pair.candidates[server.name]
            with server.awake():
                if not server.by_client:
                    candidate.undecodable = self._undecodable(server)
                candidate.overload = server.target(self.batches).closed_loop(in_flight, self.plan.overload)
            yield f"{self.pair.name}, {server.name}, {in_flight} in flight: slowest {candidate.overload.slowest:.1f} s"

    def _undecodable(self, server: Server) -> str:
        images = [*self.batches[0]]
        images[UNDECODABLE] = images[UNDECODABLE][:20]
        try:
            scores, errors = server.ask(images)
        except (OSError, PeerFailedError) as error:
            return f"no row answered: {str(error)[:80]}"
        right = sum(
            row is not None and not error and all(abs(a - b) < 1e-4 for a, b in zip(row, wanted, strict=True))
            for row, error, wanted in zip(scores, errors, self.expected, strict=True)
        )
        return f"{right} of {len(images)} rows answered; the row's error: {errors[UNDECODABLE][:50] or 'none'}"

    def _round(self, number: int) -> str:
        return f"{self.pair.name}, round {number + 1} of {self.plan.rounds}: "


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few and short rounds; write nothing.")] = False,
    only: Annotated[str | None, typer.Option(help="One pair: demo or base. Writes nothing.", metavar="PAIR")] = None,
) -> None:
    """Compare clipchoir with FastAPI, LitServe, BentoML and plain PyTorch on the same encoders, side by side.

    Installs each peer into build/peers/NAME the first time. The full run tries several settings of each peer first.
    """
    plans = QUICK if quick else PLANS
    repositories = {name: path for name, path in {"demo": DEMO, "base": BASE}.items() if only in (None, name)}
    if not repositories:
        raise typer.BadParameter(f'"{only}" is no pair; it must be demo or base', param_hint="--only")
    pairs, versions, code = [], {}, 0
    try:
        if not DEMO.is_dir():
            raise ServerError(f"{DEMO.relative_to(ROOT)} is missing; build it with: make demo")
        if "base" in repositories:
            build_base()
        for name in PINNED:
            with contextlib.suppress(EnvironmentFailedError):  # said where it is missing
                versions[TITLES[name]] = versions_of(python_of(name))
        benches = [Bench(path, plans[name], Pair(name, plans[name].batch)) for name, path in repositories.items()]
        pairs = [bench.pair for bench in benches]
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("peers", total=sum(bench.steps() for bench in benches))
            for bench in benches:
                for what in bench.run():
                    console.print(what, markup=False, soft_wrap=True)
                    bar.advance(task)
    except KeyboardInterrupt:
        console.print("interrupted; this was measured until then", style="yellow")
        code = 130
    except (ServerError, PeerFailedError, ClipchoirError, OSError) as error:  # the last two: one of them has died
        console.print(str(error), style="red", markup=False)
        code = 1
    command = " ".join(["python -m benchmarks.peers.run", *sys.argv[1:]])
    text = report(pairs, command, machine(), versions)
    print(text)
    if not (quick or only or code):
        content = {"command": command, "machine": machine(), "versions": versions, "pairs": [asdict(p) for p in pairs]}
        RESULTS.with_suffix(".json").write_text(json.dumps(content) + "\n")
        RESULTS.with_suffix(".md").write_text(text + "\n")
    if code:
        raise typer.Exit(code)


def machine() -> dict[str, object]:
    """What this ran on, and our own environment."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    cores = {"cores": len(os.sched_getaffinity(0)), "architecture": platform.machine()}
    return {**cores, "python": platform.python_version(), **versions}


def _in_turn(servers: list[Server], number: int) -> list[Server]:
    """Another order each round."""
    return random.Random(number).sample(servers, len(servers))  # noqa: S311


if __name__ == "__main__":
    typer.run(main)
