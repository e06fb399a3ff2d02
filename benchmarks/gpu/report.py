"""The report of gpu.py."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.results import BASELINE, Bench, from_json, write

GOAL = 0.6  # of the card's measured matrix products
AUTHORS = {"ViT-bigG-14-quickgelu": 131.0, "EVA-CLIP-18B": 20.8}  # images/s on an A100, as the recipe's authors ran it
LEAST_COSINE = 0.99  # below, or NaN, the runtimes do not compute the same
SERVED_WAY = "ONNX Runtime"  # what Triton runs
_HEAVY = {"Attention", "Conv", "Erf", "Gelu", "Gemm", "LayerNormalization", "MatMul", "RMSNormalization", "Softmax"}
_INTRODUCTION = """# The pair on one graphics card

Random weights of the true shapes, exported with `clipchoir-export`. ONNX Runtime and PyTorch have a process each and
compute batches that are on the card already; the processes take turns, and figures are medians of the rounds (lowest
to highest in brackets). *Utilisation*: FLOPs per image, from the manifest, times images per second, as a share of the
best matrix products that PyTorch does on the same card in the same precision, in the same minutes. The goal is 0.6.
*Memory*: what the card had less of while the process was there. *Cosine*: the smallest one to PyTorch's embeddings of
the same images; in bold where it is too small. *Authors*: what the recipe's authors had on an A100."""


def record(bench: Bench, out: Path) -> None:
    """Put a run in the place of the last one of its kind on such a card, and write the tables anew.

    Args:
        bench: measured on a GPU.
        out: without suffix.
    """
    path = out.with_suffix(".json")
    known = [from_json(each) for each in json.loads(path.read_text())] if path.exists() else []
    benches = sorted([each for each in known if _key(each) != _key(bench)] + [bench], key=_key)
    out.parent.mkdir(exist_ok=True)
    contents = [asdict(each) | {"embeddings": {}} for each in benches]
    write(path, json.dumps(contents, indent=1) + "\n")
    write(out.with_suffix(".md"), markdown(benches) + "\n")


def _key(bench: Bench) -> tuple[str, str]:
    return bench.settings["folder"], str(bench.settings["card"])


def markdown(benches: Sequence[Bench]) -> str:
    """All runs."""
    return "\n\n".join([_INTRODUCTION, *(_section(bench) for bench in benches)])


def _section(bench: Bench) -> str:
    card = bench.settings["card"] or "CPU, which shows only that it works"
    peaks = [
        f"{precision} {statistics.median(values) / 1e12:.1f} TFLOP/s"
        for precision, values in bench.peaks.items()
        if values
    ]
    details = {**bench.settings, **bench.runtimes}
    parts = [
        f"## {bench.settings['shapes']} on {card}",
        f"    {bench.command}",
        f"Matrix products: {', '.join(peaks) or 'not measured'}." + _placement(bench),
        _encoders(bench),
        _served(bench),
        "\n".join(f"- not measured: {what}: {' '.join(why.split())}" for what, why in bench.failures.items()),
        "; ".join(f"{name} {value}" for name, value in details.items() if name not in ("shapes", "card")) + ".",
    ]
    return "\n\n".join(part for part in parts if part)


def _encoders(bench: Bench) -> str:
    lines = [
        "| encoder | batch | runtime | images/s | / PyTorch | utilisation | authors, A100 | memory | cosine |",
        "|---" * 9 + "|",
    ]
    seen = dict.fromkeys((rate.encoder, rate.batch, rate.way) for rate in bench.rates)
    order = list(bench.encoders)
    for encoder, batch, way in sorted(seen, key=lambda each: (order.index(each[0]), each[1])):
        rates, base = bench.rate(encoder, way, batch), bench.rate(encoder, BASELINE, batch)
        used = statistics.median(rates) * bench.ideal_seconds(encoder)
        title = bench.encoders[encoder]["title"]
        authors = AUTHORS.get(title.partition(",")[0])
        kind = BASELINE if way == "torch.compile" else way
        memory = bench.memory.get(encoder, {}).get(kind)
        cosine = bench.agreement.get(encoder, {}).get(way)
        lines.append(
            f"| {title} | {batch} | {way} | {_figures(rates)} "
            f"| {f'{statistics.median(rates) / statistics.median(base):.2f}' if base else ''} "
            f"| {_share(used)} | {authors or ''} | {f'{memory / 1e9:.1f} GB' if memory else ''} "
            f"| {'' if cosine is None else f'{cosine:.5f}' if cosine >= LEAST_COSINE else f'**{cosine:.5f}**'} |"
        )
    return "\n".join(lines) if seen else ""


def _served(bench: Bench) -> str:
    lines = [
        "The pair in the embedded Triton, JPEGs of 224x224 from clipchoir's own client. *Of the encoders*: as a share",
        "of what ONNX Runtime does with both encoders one after the other, at the same batch.",
        "",
        "| batch | in flight | images/s | of the encoders | utilisation | mean batch of the steps | memory |",
        "|---" * 7 + "|",
    ]
    memory = bench.memory.get("the pair", {}).get("Triton")
    for batch in sorted({each.batch for each in bench.served}):
        some = [each for each in bench.served if each.batch == batch]
        rates = [each.images_per_second for each in some]
        rate = statistics.median(rates)
        alone = [bench.rate(encoder, SERVED_WAY, batch) for encoder in bench.encoders]
        limit = 1 / sum(1 / statistics.median(each) for each in alone) if all(alone) else None
        used = rate * sum(bench.ideal_seconds(encoder) for encoder in bench.encoders)
        batches = ", ".join(
            f"{name} {statistics.median(each.mean_batches.get(name, 0) for each in some):.1f}"
            for name in bench.encoders
        )
        lines.append(
            f"| {batch} | {some[0].in_flight} | {_figures(rates)} | {f'{rate / limit:.2f}' if limit else ''} "
            f"| {_share(used)} | {batches} | {f'{memory / 1e9:.1f} GB' if memory else ''} |"
        )
    return "\n".join(lines) if bench.served else ""


def _placement(bench: Bench) -> str:
    """Whether ONNX Runtime left work to the CPU that belongs on the card."""
    if not bench.settings["card"]:
        return ""
    sentences = []
    for encoder, counts in bench.on_cpu.items():
        heavy = {kind: count for kind, count in counts.items() if kind in _HEAVY}
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted((heavy or counts).items()))
        sentences.append(
            f" **ONNX Runtime computes {listed} of {encoder} on the CPU.**"
            if heavy
            else f" Of {encoder}, ONNX Runtime has on the CPU: {listed or 'nothing'}."
        )
    return "".join(sentences)


def _share(value: float) -> str:
    if value != value:  # NaN
        return ""
    return f"{value:.2f}{' (goal met)' if value >= GOAL else ''}"


def _figures(values: Sequence[float]) -> str:
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.1f}{spread}"
