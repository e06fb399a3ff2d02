"""The report of `benchmarks.service.bench`: tables and plots."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TARGETS = {("demo", 32): 0.75, ("base", 8): 0.95}  # throughput as a share of the in-process limit
SINGLE_TARGET = 1.3  # latency of a single image, base pair, as a multiple of the in-process one

_COLUMNS = 3  # of plots: readable at the width of a page

Content = dict[str, Any]


class ReportError(Exception):
    """What was measured cannot be."""


def tables(content: Content, old: Content | None = None) -> str:
    """Markdown.

    Args:
        content: of the JSON.
        old: of an earlier run, to compare with.

    Raises:
        ReportError: the encoders took more FLOPs per second than the fastest matrix products.
    """
    parts = [
        "# What the service costs beside its encoders",
        f"    {content['command']}",
        "perf_analyzer's throughput and latency, beside the same decoder, encoders and scores in one process without\n"
        "a server (the limit, with the best of several ways to use the cores). Server, load and limit share the cores\n"
        "and take turns; medians of the rounds. Overhead = 1 - share of the limit. Utilisation: FLOPs of the encoders\n"
        f"per second as a share of float32 matrix products in {content['matmul_by']} on the same cores "
        f"({content['matmul_gflops']:.0f} GFLOP/s).",
        _throughputs(content, old),
        _rates(content),
        _singles(content),
        _steps(content),
        f"{content['machine']['cores']} cores of {content['machine']['architecture']}; "
        + ", ".join(f"{name} {value}" for name, value in list(content["machine"].items())[2:])
        + ".",
    ]
    return "\n\n".join(part for part in parts if part)


def _key(point: Content) -> tuple[Any, ...]:
    return point["repository"], tuple(point["size"]), point["batch"]


def _grouped(
    items: Iterable[Content], key: Callable[[Content], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[Content]]:
    found: dict[tuple[Any, ...], list[Content]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _median(items: Iterable[Content], name: str) -> float:
    return statistics.median(item[name] for item in items)


def shares(content: Content) -> dict[tuple[Any, ...], float]:
    """Throughput as a share of the limit, by (repository, size, batch, in flight): medians of the rounds' ratios."""
    limits = _grouped(content["limits"], _key)
    served = _grouped(
        (each for each in content["points"] if not each["rate"]), lambda each: (*_key(each), each["in_flight"])
    )
    return {
        key: statistics.median(
            one["images_per_second"] / other["images_per_second"]
            for one, other in zip(points, limits[key[:3]], strict=False)
        )
        for key, points in served.items()
    }


def _throughputs(content: Content, old: Content | None) -> str:
    before, now = (shares(each) if each else {} for each in (old, content))
    lines = [
        "| pair | images | batch | in flight | images/s | limit | share | target | p50 | p90 | p99 | CPU of 1 s "
        f"| mean batch | utilisation |{' share before | ratio |' if old else ''}",
        "|---" * (16 if old else 14) + "|",
    ]
    served = _grouped(
        (each for each in content["points"] if not each["rate"]), lambda each: (*_key(each), each["in_flight"])
    )
    limits = _grouped(content["limits"], _key)
    best = {
        key[:3]: max((other for other in served if other[:3] == key[:3]), key=lambda other: now[other])
        for key in served
    }
    for key, points in served.items():
        name, size, batch, in_flight = key
        share = now[key]
        throughput = _median(points, "images_per_second")
        seconds = [len_images(each) / each["images_per_second"] for each in points]
        cpu = statistics.median(
            each["usage"]["cpu_seconds"] / taken for each, taken in zip(points, seconds, strict=True)
        )
        mean = statistics.median(each["usage"]["steps"]["ensembling"]["mean_batch"] for each in points)
        target = TARGETS.get((name, batch)) if best[key[:3]] == key else None
        use = _utilisation(content, name, throughput)
        row = (
            f"| {name} | {size[0]}x{size[1]} | {batch} | {in_flight} | {throughput:.1f} "
            f"| {_median(limits[key[:3]], 'images_per_second'):.1f} | **{share:.2f}** | {target or ''} "
            f"| {_ms(points, 'p50')} | {_ms(points, 'p90')} | {_ms(points, 'p99')} | {cpu:.2f} s | {mean:.1f} "
            f"| {use:.1%} |"
        )
        if old:
            row += f" {before[key]:.2f} | {share / before[key]:.2f} |" if key in before else " | |"
        lines.append(row)
    ways = {(each["repository"], each["batch"]): each["way"] for each in content["limits"]}
    notes = [f"Limit of {name} at batch {batch}: {way}." for (name, batch), way in ways.items()]
    return "\n".join([*lines, "", *notes])


def _utilisation(content: Content, name: str, throughput: float) -> float:
    gflops = throughput * content["gflop"][name]
    if gflops > content["matmul_gflops"]:
        raise ReportError(
            f"{name}: {throughput:.1f} images/s of {content['gflop'][name]:.3g} GFLOP each are {gflops:.0f} GFLOP/s, "
            f"more than the {content['matmul_gflops']:.0f} GFLOP/s of {content['matmul_by']}'s products, which the "
            "benchmark takes for the most that the cores can do"
        )
    return gflops / content["matmul_gflops"]


def len_images(point: Content) -> int:
    """Rows of a measurement."""
    return int(point["usage"]["steps"]["zero_shot"]["images"])


def _ms(points: list[Content], name: str) -> str:
    return f"{1000 * _median(points, name):.0f} ms"


def _rates(content: Content) -> str:
    points = [each for each in content["points"] if each["rate"]]
    if not points:
        return ""
    lines = [
        "Requests at random times (Poisson), for honest tails:",
        "",
        "| pair | images | batch | requests/s | images/s | p50 | p90 | p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each['repository']} | {each['size'][0]}x{each['size'][1]} | {each['batch']} | {each['rate']:.2f} "
        f"| {each['images_per_second']:.1f} | {_ms([each], 'p50')} | {_ms([each], 'p90')} | {_ms([each], 'p99')} |"
        for each in points
    ]
    return "\n".join(lines)


def _singles(content: Content) -> str:
    if not content["singles"]:
        return ""
    lines = [
        "One image at a time on an idle server, p50:",
        "",
        "| pair | served | in process | ratio | target |",
        "|---|---|---|---|---|",
    ]
    for each in content["singles"]:
        target = f"at most {SINGLE_TARGET}" if each["repository"] == "base" else ""
        lines.append(
            f"| {each['repository']} | {1000 * each['served']:.1f} ms | {1000 * each['in_process']:.1f} ms "
            f"| **{each['served'] / each['in_process']:.2f}** | {target} |"
        )
    return "\n".join(lines)


def _steps(content: Content) -> str:
    """Of the last measurement of each pair with most in flight."""
    lines = [
        "Where the time goes, per request, with the largest batches and most requests in flight. Steps answer later:",
        "their compute time is that until they take the batch.",
        "",
        "| pair | step | queue | compute | mean batch |",
        "|---|---|---|---|---|",
    ]
    for (name,), points in _grouped(
        (each for each in content["points"] if not each["rate"]), lambda each: (each["repository"],)
    ).items():
        point = max(points, key=lambda each: (each["batch"], each["in_flight"]))
        for step, numbers in point["usage"]["steps"].items():
            if step != "zero_shot":
                lines.append(
                    f"| {name} | {step} | {numbers['queue_ms']:.1f} ms | {numbers['compute_ms']:.1f} ms "
                    f"| {numbers['mean_batch']:.1f} |"
                )
    return "\n".join(lines) if content["points"] else ""


def write_plots(content: Content, out: Path) -> None:
    """<out>_throughput.png: throughput against the number in flight, the limit beside it; <out>_latency.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    served = _grouped((each for each in content["points"] if not each["rate"]), _key)
    limits = _grouped(content["limits"], _key)
    for kind in ("throughput", "latency"):
        rows = -(-len(served) // _COLUMNS)
        figure = Figure(figsize=(3.4 * _COLUMNS, 2.8 * rows), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axes in grid[len(served) :]:
            axes.remove()
        for axes, (key, points) in zip(grid, served.items(), strict=False):
            name, size, batch = key
            axes.set_title(f"{name}, {size[0]}x{size[1]}, batch {batch}", fontsize=9)
            axes.set_xlabel("requests in flight")
            by = _grouped(points, lambda each: (each["in_flight"],))
            numbers = [each for (each,) in by]
            if kind == "throughput":
                axes.plot(numbers, [_median(some, "images_per_second") for some in by.values()], "o-", label="served")
                axes.axhline(_median(limits[key], "images_per_second"), color="grey", linestyle="--", label="limit")
                axes.set_ylabel("images/s")
            else:
                for quantile in ("p50", "p90", "p99"):
                    axes.plot(numbers, [1000 * _median(some, quantile) for some in by.values()], "o-", label=quantile)
                axes.set_ylabel("ms per request")
            axes.set_xticks(numbers)
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
        FigureCanvasAgg(figure).print_figure(out.with_name(f"{out.name}_{kind}.png"), dpi=110)
