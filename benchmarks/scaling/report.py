"""The report of `benchmarks.scaling.run`: tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

BEND = 0.05  # a step that gains less, or where more work is asked for, one that loses more

Content = dict[str, Any]


@dataclass(frozen=True)
class _Axis:
    """How to tell of an axis.

    Attributes:
        title: of its section.
        unit: of the cases' labels.
        gains: whether throughput should grow; otherwise each step asks for more work.
        note: what else is the case.
    """

    title: str
    unit: str
    gains: bool
    note: str


_AXES = {
    "instances": _Axis(
        "Instances of a step",
        "instances",
        True,
        "`instance_group` of the step; the other steps have one. All encoders are changed together.",
    ),
    "batch": _Axis("Images per request", "batch", True, "Triton may put requests together in any case."),
    "size": _Axis(
        "Size of the images",
        "image",
        False,
        "JPEGs of the same six scenes, two per request; all are resized to the encoders' 224x224.",
    ),
    "classes": _Axis(
        "Classes",
        "classes",
        False,
        "One prompt each. perf_analyzer asks for all outputs, so for the names of all classes in each row too; the "
        "second series has an\nensemble without that output, which is what clients that do not ask for it see.",
    ),
    "templates": _Axis("Prompts per class", "prompts", False, "Without the classes' names in the answers."),
    "encoders": _Axis(
        "Encoders",
        "encoders",
        False,
        "The demo pair's image encoders, the third and fourth again with another sharpness; without text encoders, so "
        "the memory is not\nto be compared with the other tables'.",
    ),
}


@dataclass(frozen=True)
class Row:
    """A case of a series.

    Attributes:
        label, value: of the case.
        images_per_second, p50, p99: medians over the rounds; seconds.
        ratios: throughput as a multiple of the first case's in the same round, by round.
        cpu_ms: of the server, per image; the median.
        memory_mib: of the server and all below it, at the end of the first round.
    """

    label: str
    value: float
    images_per_second: float
    p50: float
    p99: float
    ratios: tuple[float, ...]
    cpu_ms: float
    memory_mib: float

    @property
    def ratio(self) -> float:
        """NaN where the first case was not measured in any of the rounds."""
        return statistics.median(self.ratios) if self.ratios else float("nan")


def rows(content: Content, axis: str, series: str) -> list[Row]:
    """The cases of a series, by value."""
    runs = [run for run in content["runs"] if (run["axis"], run["series"]) == (axis, series)]
    values = sorted({run["value"] for run in runs})
    first = {run["turn"]: run["images_per_second"] for run in runs if run["value"] == values[0]}
    return [_row([run for run in runs if run["value"] == value], first) for value in values]


def _row(runs: Sequence[Content], first: dict[int, float]) -> Row:
    def median(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    return Row(
        label=runs[0]["label"],
        value=runs[0]["value"],
        images_per_second=median("images_per_second"),
        p50=median("p50"),
        p99=median("p99"),
        ratios=tuple(run["images_per_second"] / first[run["turn"]] for run in runs if run["turn"] in first),
        cpu_ms=statistics.median(1000 * run["usage"]["cpu_seconds"] / run["images"] for run in runs),
        memory_mib=runs[0]["usage"]["memory_mib"],
    )


def bend(found: Sequence[Row], gains: bool) -> str:
    """Where throughput stops growing, or begins to fall.

    Args:
        found: rows of a series, by value.
        gains: whether it should grow.
    """
    steps = [(one, other, other.ratio / one.ratio - 1) for one, other in pairwise(found)]
    steps = [step for step in steps if step[2] == step[2]]  # NaN: interrupted
    if not steps:
        return "nothing to compare"
    for one, other, step in steps:
        if (gains and step < BEND) or (not gains and step < -BEND):
            return f"at {other.label}: {step:+.0%} beside {one.label}"
    one, other, step = steps[-1]
    if gains:
        return f"not up to {other.label}, which still makes {step:+.0%} beside {one.label}"
    return f"not up to {other.label}: no step loses more than {BEND:.0%}"


def tables(content: Content) -> str:
    """Markdown."""
    machine = content["machine"]
    parts = [
        "# How the service scales",
        f"    {content['command']}",
        "A real tritonserver with the demo pair, one thing changed at a time, driven by perf_analyzer with "
        f"{content['in_flight']} requests in\nflight; where nothing else is said, 8 JPEGs of 224x224 per request, one "
        "instance of each step, 6 classes with 52 prompts\neach, all outputs. Server and load share the cores. The "
        "cases of a series take turns with its first one: *ratio* is the\nthroughput as a multiple of the first case's "
        "in the same round, the median of the rounds and the range; images/s are\nmedians over all rounds, which are "
        "not all of the same minutes, and count while every place in\nflight is filled. "
        "*Step* is the ratio beside that of the row above. CPU is\nthe server's, per "
        "image; memory is the PSS of tritonserver and all its processes, after the first round, when the\nserver had "
        "seen no larger case. A series bends at the first step that gains less than "
        f"{BEND:.0%}, or loses more where each step\nasks for more work.",
    ]
    for axis in dict.fromkeys(run["axis"] for run in content["runs"]):
        about = _AXES[axis]
        parts.append(f"## {about.title}")
        parts.append(about.note)
        for series in _series(content, axis):
            parts.append(_table(rows(content, axis, series), about, series))
    parts.append(
        f"{machine['cores']} cores of {machine['architecture']}; "
        + ", ".join(f"{name} {value}" for name, value in list(machine.items())[2:])
        + "."
    )
    return "\n\n".join(parts)


def _series(content: Content, axis: str) -> list[str]:
    return list(dict.fromkeys(run["series"] for run in content["runs"] if run["axis"] == axis))


def _table(found: Sequence[Row], about: _Axis, series: str) -> str:
    lines = [
        f"| {about.unit} | images/s | ratio | lowest to highest | step | p50 | p99 | CPU per image | memory |",
        "|---" * 9 + "|",
    ]
    before: Row | None = None
    for row in found:
        spread = f"{min(row.ratios):.2f} to {max(row.ratios):.2f}" if before and row.ratios else ""
        step = f"{row.ratio / before.ratio - 1:+.0%}" if before else ""
        lines.append(
            f"| {row.label} | {row.images_per_second:.1f} | **{row.ratio:.2f}** | {spread} | {step} "
            f"| {1000 * row.p50:.0f} ms | {1000 * row.p99:.0f} ms | {row.cpu_ms:.2f} ms | {row.memory_mib:.0f} MiB |"
        )
        before = row
    title = [f"**{series[0].upper()}{series[1:]}**", ""] if series else []
    return "\n".join([*title, *lines, "", f"Where it bends: {bend(found, about.gains)}."])
