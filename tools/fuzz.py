"""Thousands of damaged images and parameters: each gets an answer or a typed error, and the server stays well.

python -m tools.fuzz --count 10000 --seed 0        # or: make fuzz
"""

import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer
from tritonclient.grpc import service_pb2

from tests.conftest import ROOT, encoded, noise
from tests.support.launcher import launched
from tests.support.mutations import Case, Value, cases

DEADLINE = 60.0  # seconds; reaching it is a failure
REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")
BATCH = 32  # images
CLIENTS = 4
NUMBERS = ("score", "scores", "encoder_scores")
OUTPUTS = ("label", *NUMBERS, "classes", "error")
CLEAN = encoded(noise(77), "JPEG")
NOT_PARSED = "Unable to parse request"  # gRPC's own answer to a string that is no UTF-8; Triton never sees it
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Findings:
    """What came of it: how often which outcome, and what should not have been."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Wire:
    """Requests below tritonclient, which would refuse to send half of these."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._infer = self._channel.unary_unary(
            METHOD, request_serializer=None, response_deserializer=service_pb2.ModelInferResponse.FromString
        )

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def ask(self, rows: Sequence[bytes], parameters: dict[str, Value] | None = None) -> dict[str, np.ndarray]:
        """One request.

        Raises:
            grpc.RpcError: it was refused.
        """
        answer = self._infer(request_bytes(rows, parameters or {}), timeout=DEADLINE)
        return {
            output.name: _array(raw, output.datatype, tuple(output.shape))
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }


def request_bytes(rows: Sequence[bytes], parameters: dict[str, Value]) -> bytes:
    """A `ModelInferRequest` as it goes over the wire; a value of bytes becomes a string that need not be UTF-8."""
    request = service_pb2.ModelInferRequest(model_name="zero_shot")
    image = request.inputs.add(name="image", datatype="BYTES", shape=[len(rows), 1])
    assert image.name
    for name in OUTPUTS:
        request.outputs.add(name=name)
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(row)) + row for row in rows))
    raw: dict[bytes, bytes] = {}
    for name, value in parameters.items():
        parameter = request.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        elif isinstance(value, bytes):
            stand_in = b"\x01" * len(value)
            parameter.string_param = stand_in.decode()
            raw[stand_in] = value
    data: bytes = request.SerializeToString()
    for stand_in, value in raw.items():
        data = data.replace(stand_in, value)
    return data


def is_no_utf8(case: Case) -> bool:
    return any(isinstance(value, bytes) for value in (case.parameters or {}).values())


def _array(raw: bytes, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    if datatype == "FP32":
        return np.frombuffer(raw, np.float32).reshape(shape)
    items, position = [], 0
    while position < len(raw):
        (size,) = struct.unpack_from("<I", raw, position)
        items.append(raw[position + 4 : position + 4 + size])
        position += 4 + size
    return np.array(items, np.object_).reshape(shape)


def wrong_with(answer: dict[str, np.ndarray], row: int) -> str | None:
    """What a row of an answer must not be."""
    if error := answer["error"][row, 0]:
        if not all(np.isnan(answer[name][row]).all() for name in NUMBERS) or answer["label"][row, 0]:
            return f"an error and numbers: {error!r}"
        return None if error.decode(errors="replace").isprintable() else f"an unreadable error: {error!r}"
    if not all(np.isfinite(answer[name][row]).all() for name in NUMBERS):
        return f"numbers that are not finite: {answer['scores'][row]}"
    sums = np.append(answer["encoder_scores"][row].sum(axis=-1), answer["scores"][row].sum())
    if np.abs(sums - 1).max() > 1e-4:
        return f"scores that sum to {sums}"
    return None if answer["label"][row, 0] in answer["classes"][row] else "a label that is no class"


def fuzz(address: str, seed: int, count: int) -> Findings:
    """Send the cases 0 to `count` and, before and after, a clean request."""
    found = Findings()
    with Wire(address) as wire:
        before = wire.ask([CLEAN])
        with ThreadPoolExecutor(CLIENTS) as threads:
            for part in threads.map(lambda some: _send(wire, seed, some), _batches(cases(seed, range(count)))):
                found.outcomes += part.outcomes
                found.failures += part.failures
        after = wire.ask([CLEAN])
    for name, expected in before.items():
        if not np.array_equal(after[name], expected):
            found.failures.append(f"a clean request afterwards has another {name}")
    return found


def _batches(all_cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Images together, parameters one by one; mixed, so that both are under way at a time."""
    images = [case for case in all_cases if case.image is not None]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    others = [[case] for case in all_cases if case.image is None]
    share = -(-len(others) // max(1, len(batches)))
    for index, batch in enumerate(batches):
        yield batch
        yield from others[index * share : (index + 1) * share]
    if not batches:
        yield from others


def _send(wire: Wire, seed: int, some: list[Case]) -> Findings:
    found = Findings()
    rows = [CLEAN if case.image is None else case.image for case in some]
    kind = next(iter(some[0].parameters)) if some[0].parameters else "image"
    start = time.monotonic()

    def fail(case: Case, what: str) -> None:
        value = repr(case.image if case.parameters is None else case.parameters)
        shown = value if len(value) < 3000 else value[:3000] + "..."
        found.failures.append(f"{what}\n  seed {seed}, case {case.number}: {shown}")

    try:
        answer = wire.ask(rows, some[0].parameters)
    except grpc.RpcError as error:
        code = error.code().name
        if error.details() == NOT_PARSED and is_no_utf8(some[0]):
            code = "not a request"
        found.outcomes[f"{kind}: {code}"] += len(some)
        if kind == "image" or code not in (*REFUSALS, "not a request"):
            for case in some:
                fail(case, f"{code} after {time.monotonic() - start:.1f} s: {error.details()[:500]}")
        return found
    for row, case in enumerate(some):
        found.outcomes[f"{kind}: {'row error' if answer['error'][row, 0] else 'answer'}"] += 1
        if what := wrong_with(answer, row):
            fail(case, what)
    return found


def main(
    count: Annotated[int, typer.Option(min=1, help="How many damaged inputs.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Other seeds, other inputs.")] = 0,
    only: Annotated[int | None, typer.Option(help="Send the case of this number alone, as in a failure.")] = None,
    repository: Annotated[Path, typer.Option(help="Repository of the demo pair, with text encoders.")] = ROOT
    / "build"
    / "demo",
) -> None:
    """Send damaged images, label sets and weights to the demo pair's server. Exit code 1: not all went as it should."""
    with tempfile.TemporaryDirectory(prefix="clipchoir-fuzz-") as folder:
        with launched(repository, Path(folder)) as server:
            start = time.monotonic()
            if only is None:
                found = fuzz(server.grpc, seed, count)
            else:
                with Wire(server.grpc) as wire:
                    found = _send(wire, seed, cases(seed, [only]))
            seconds = time.monotonic() - start
        if server.deaths():
            found.failures.append(f"the server died:\n{server.log.read_text()}")
    for kind, outcomes in groupby(sorted(found.outcomes.items()), key=lambda item: item[0].partition(":")[0]):
        print(f"{kind}:", ", ".join(f"{number} {name.partition(': ')[2]}" for name, number in outcomes))
    print(f"seed {seed}, {found.outcomes.total()} inputs in {seconds:.0f} s, {len(found.failures)} failures")
    for failure in found.failures[:20]:
        print(failure, file=sys.stderr)
    if found.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    typer.run(main)
