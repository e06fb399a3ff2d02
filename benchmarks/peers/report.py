"""What benchmarks/peers/run.py found, and its tables."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.peers.load import Load

OURS, OURS_CLIENT = "clipchoir, HTTP", "clipchoir, its client"
THROUGHPUT_TARGETS = {"demo": 1.5, "base": 1.0}  # times the best peer
Lines = list[str]


@dataclass
class Setting:
    """One way of running a peer that was tried: images/s at saturation, and seconds of a single image."""

    settings: str
    images_per_second: float
    single: float


@dataclass
class Candidate:
    """Of one server.

    Attributes:
        settings: it was run with.
        tried: all that were.
        saturation: by requests in flight, a load per round.
        offered: a load per round, all of the same schedule.
        single: likewise, image by image on an idle server.
        undecodable: what the client sees of a batch with one such image.
        overload: far more requests in flight than it takes.
    """

    settings: str = ""
    tried: list[Setting] = field(default_factory=list)
    saturation: dict[int, list[Load]] = field(default_factory=dict)
    offered: list[Load] = field(default_factory=list)
    single: list[Load] = field(default_factory=list)
    undecodable: str = ""
    overload: Load | None = None

    def throughput(self, in_flight: int) -> float:
        """Images per second, the median of the rounds."""
        return statistics.median(load.images_per_second for load in self.saturation[in_flight])

    def best(self) -> int:
        """Requests in flight with the highest throughput; 0 if nothing was measured, or nothing answered."""
        best = max(self.saturation, key=self.throughput, default=0)
        return best if best and self.throughput(best) else 0


@dataclass
class Pair:
    """Of one pair of encoders.

    Attributes:
        name: demo or base.
        batch: images per request.
        candidates: by name.
        seed: images per second of the seed's way, by workers of its DataLoader, one per round.
        missing: why a candidate is not there, by name.
        rate: requests per second that were offered to all.
        overload_in_flight: requests.
    """

    name: str
    batch: int
    candidates: dict[str, Candidate] = field(default_factory=dict)
    seed: dict[int, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rate: float = 0.0
    overload_in_flight: int = 0

    def peers(self) -> dict[str, Candidate]:
        """The others that have been measured."""
        return {name: each for name, each in self.candidates.items() if name not in (OURS, OURS_CLIENT) and each.best()}


def percentile(loads: Sequence[Load], share: float) -> float:
    """Seconds, of all rounds together; NaN of nothing."""
    values = sorted(latency for load in loads for latency in load.latencies)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def report(pairs: Sequence[Pair], command: str, machine: dict[str, object], versions: dict[str, dict[str, str]]) -> str:
    """Markdown."""
    lines = [
        "# clipchoir beside the usual ways of serving",
        "",
        f"    {command}",
        "",
        "The same ONNX files, the same JPEGs of 224x224 pixels, the same scores, one load generator, which shares the",
        "cores with the server. The candidates take turns; in brackets, the ratio to *clipchoir, HTTP*. Latencies at",
        "an offered load are of requests at random times (Poisson), the same for all, counted from when each was due.",
        "Memory is the sum of PSS over all processes of a server, its peak; CPU is user and system time per image.",
        "What is done with a row that cannot be decoded is written in benchmarks/peers/apps/pipeline.py: the",
        "frameworks would fail its batch.",
    ]
    for pair in pairs:
        if any(each.best() for each in pair.candidates.values()):
            lines += ["", f"## {pair.name} pair, batches of {pair.batch}", "", *_figures(pair), *_behaviour(pair)]
            lines += [*_targets(pair), *_tried(pair)]
        lines += [
            line for name, why in pair.missing.items() for line in ("", f"{name} is missing: {why.splitlines()[0]}")
        ]
    lines += ["", "## Versions", "", ", ".join(f"{key} {value}" for key, value in machine.items()) + "."]
    lines += [
        line
        for name, found in versions.items()
        for line in ("", f"{name}: " + ", ".join(f"{package} {version}" for package, version in found.items()) + ".")
    ]
    return "\n".join(lines)


def _figures(pair: Pair) -> Lines:
    ours = pair.candidates[OURS]
    lines = [
        "| | images/s | in flight | p50 | p99 | "
        f"p50 at {pair.rate:.2f} requests/s | p99 | single image, p50 | memory | CPU, server | CPU, client |",
        "|---" * 11 + "|",
    ]
    for name, each in pair.candidates.items():
        if each.best():
            lines.append(f"| {name} | " + " | ".join(_row(each, ours, pair.batch)) + " |")
    if any(pair.seed.values()):
        rates = {workers: statistics.median(found) for workers, found in pair.seed.items() if found}
        workers = max(rates, key=rates.__getitem__)
        reference = ours.throughput(ours.best()) if ours.best() else float("nan")
        rate = _with_ratio(rates[workers], reference, "{:.1f}")
        lines.append(f"| PyTorch, no server, {workers} DataLoader workers | {rate} |" + " |" * 9)
    return lines


def _row(each: Candidate, ours: Candidate, batch: int) -> Lines:
    loads, reference = each.saturation[each.best()], ours.saturation.get(ours.best(), [])

    def of(measure: Callable[[Sequence[Load]], float], mine: Sequence[Load], theirs: Sequence[Load], form: str) -> str:
        return _with_ratio(measure(mine), measure(theirs), form) if mine else ""

    def images(found: Sequence[Load]) -> float:
        return statistics.median(load.images_per_second for load in found) if found else float("nan")

    def cpu(kind: str) -> Callable[[Sequence[Load]], float]:
        def per_image(found: Sequence[Load]) -> float:
            count = sum(len(load.latencies) for load in found) * batch
            return sum(getattr(load, kind) for load in found) / count if count else float("nan")

        return per_image

    def memory(found: Sequence[Load]) -> float:
        return max((load.memory_mib for load in found), default=float("nan"))

    milliseconds = "{:.1f} ms"
    return [
        of(images, loads, reference, "{:.1f}"),
        str(each.best()),
        *(_ms(percentile(loads, share)) for share in (0.5, 0.99)),
        of(lambda found: 1000 * percentile(found, 0.5), each.offered, ours.offered, milliseconds),
        of(lambda found: 1000 * percentile(found, 0.99), each.offered, ours.offered, milliseconds),
        of(lambda found: 1000 * percentile(found, 0.5), each.single, ours.single, milliseconds),
        of(memory, loads, reference, "{:.0f} MiB"),
        of(lambda found: 1000 * cpu("server_cpu")(found), loads, reference, "{:.2f} ms"),
        of(lambda found: 1000 * cpu("client_cpu")(found), loads, reference, "{:.3f} ms"),
    ]


def _behaviour(pair: Pair) -> Lines:
    lines: Lines = []
    for name, each in pair.candidates.items():
        if each.overload is None:
            continue
        load = each.overload
        answered, failed = len(load.latencies), sum(load.errors.values())
        errors = ", ".join(f"{count} x {kind}" for kind, count in Counter(load.errors).most_common(3)) or "none"
        lines.append(
            f"| {name} | {each.undecodable} | {answered} of {answered + failed} | {errors.replace('|', ' ')} "
            f"| {load.slowest:.1f} s |"
        )
    if lines:
        head = (
            f"| | one undecodable image in a batch | {pair.overload_in_flight} in flight: answered | errors | slowest |"
        )
        lines = ["", head, "|---" * 5 + "|", *lines]
    return lines


def _targets(pair: Pair) -> Lines:
    ours, peers = pair.candidates[OURS], pair.peers()
    if not peers or not ours.best():
        return []
    name, best = max(peers.items(), key=lambda each: each[1].throughput(each[1].best()))
    rate, p99 = best.throughput(best.best()), percentile(best.saturation[best.best()], 0.99)
    equal = [
        ours.throughput(in_flight) for in_flight, loads in ours.saturation.items() if percentile(loads, 0.99) <= p99
    ]
    wanted, found = THROUGHPUT_TARGETS[pair.name], max(equal, default=0.0) / rate
    lines = [
        "",
        f"- throughput at a p99 no worse than that of the best peer ({name}, {rate:.1f} images/s, {_ms(p99)}): "
        f"{found:.2f} of it; target {wanted}: {_verdict(found >= wanted)}; "
        f"whatever the p99: {ours.throughput(ours.best()) / rate:.2f}",
    ]
    offered = {peer: percentile(each.offered, 0.99) for peer, each in peers.items() if each.offered}
    if offered and ours.offered:
        mine, theirs = percentile(ours.offered, 0.99), min(offered.values())
        lines.append(f"- p99 at the offered load: {mine / theirs:.2f} of the best peer's: {_verdict(mine <= theirs)}")
    single = [percentile(each.single, 0.5) for each in peers.values() if each.single]
    tried = [setting.single for each in peers.values() for setting in each.tried]
    if single and ours.single:
        mine, theirs = percentile(ours.single, 0.5), min(single)
        text = f"- single image, idle server: {mine / theirs:.2f} of the best peer's: {_verdict(mine <= theirs)}"
        lines.append(text + (f"; {mine / min(tried):.2f} of the best of any setting tried" if tried else ""))
    return lines


def _tried(pair: Pair) -> Lines:
    rows = [
        f"| {name} | {setting.settings} | {setting.images_per_second:.1f} | {_ms(setting.single)} |"
        for name, each in pair.candidates.items()
        for setting in sorted(each.tried, key=lambda setting: -setting.images_per_second)
    ]
    head = [
        "",
        "Settings that were tried; each peer ran with its first:",
        "",
        "| | settings | images/s | single image |",
    ]
    if not rows:
        taken = [f"{name}: {each.settings}" for name, each in pair.candidates.items() if each.settings]
        return ["", "Settings: " + "; ".join(taken) + "."]
    return [*head, "|---" * 4 + "|", *rows]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def _with_ratio(value: float, reference: float, form: str) -> str:
    ratio = f" ({value / reference:.2f})" if reference > 0 else ""  # not of NaN
    return form.format(value) + ratio


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
