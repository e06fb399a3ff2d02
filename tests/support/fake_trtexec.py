"""Stands in for TensorRT's `trtexec`: takes its arguments, computes with ONNX Runtime, writes its files.

Options, messages and formats are those of TensorRT 10.5 to 11 (samples/common/sampleOptions.cpp, sampleReporting.cpp
and sampleUtils.cpp of NVIDIA/TensorRT). `FAKE_TRTEXEC` in the environment lets it go wrong, or be another version.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # most calls need no arrays, and are quick without
    import numpy as np
    from numpy.typing import NDArray

BUILD = ["--onnx", "--minShapes", "--optShapes", "--maxShapes", "--noTF32", "--skipInference", "--saveEngine"]
TYPING = ["--stronglyTyped", "--decomposableAttentions"]
INFERENCE = ["--loadEngine", "--shapes", "--loadInputs", "--exportOutput"]


def main() -> None:
    wrong = os.environ.get("FAKE_TRTEXEC", "")
    typing = TYPING[1:] if wrong == "version 11" else TYPING
    known = [*BUILD, *typing, *INFERENCE]
    if "--help" in sys.argv:
        print("&&&& RUNNING TensorRT.trtexec # trtexec --help\n=== Build Options ===")
        for option in known:
            print(f"  {option}=spec".ljust(40), "What it does")
        return
    options = {name: value for name, _, value in (argument.partition("=") for argument in sys.argv[1:])}
    unknown = options.keys() - set(known)
    if unknown:
        sys.exit(f"[E] Unknown option: {unknown.pop()}")
    if "--onnx" in options:
        build(options, "--stronglyTyped" in known, wrong)
    else:
        infer(options, wrong)


def build(options: dict[str, str], may_be_weakly_typed: bool, wrong: str) -> None:
    """An "engine" is the command that built it."""
    engine, onnx = Path(options["--saveEngine"]), Path(options["--onnx"])
    engine.write_text("half an engine")
    if wrong == "no engine":
        sys.exit("[E] Error Code 4: Internal Error (no implementation)")
    if may_be_weakly_typed and "--stronglyTyped" not in options:
        sys.exit("[E] a weakly typed network does not have the graph's types")
    engine.write_text(json.dumps(options | {"--onnx": str(onnx.resolve(strict=True))}))


def infer(options: dict[str, str], wrong: str) -> None:
    import numpy as np
    import onnxruntime

    built = json.loads(Path(options["--loadEngine"]).read_text())
    name, shape = spec(options["--shapes"])
    least, most = (spec(built[f"--{which}Shapes"])[1] for which in ("min", "max"))
    if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
        sys.exit(f"[E] {name} {shape} is outside of the profile")
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(built["--onnx"], settings)
    (tensor,) = session.get_inputs()
    loaded, _, path = options["--loadInputs"].rpartition(":")
    if not name == loaded == tensor.name:
        sys.exit(f"[E] Cannot find input tensor with name {loaded}")
    kind = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}[tensor.type]
    data = Path(path).read_bytes()
    if len(data) != np.prod(shape) * np.dtype(kind).itemsize:
        sys.exit(f"[E] Unexpected file size for input file: {path}")
    output = session.get_outputs()[0].name
    (values,) = session.run([output], {name: np.frombuffer(data, kind).reshape(shape)})
    Path(options["--exportOutput"]).write_text(exported(output, spoilt(values, wrong)))


def spec(text: str) -> tuple[str, list[int]]:
    """`pixels:8x224x224x3`."""
    name, _, shape = text.partition(":")
    return name, [int(size) for size in shape.split("x")]


def spoilt(values: "NDArray[np.float32]", wrong: str) -> "NDArray[np.float32]":
    import numpy as np

    if wrong == "rows mixed up":
        return np.roll(values, 1, axis=0)
    if wrong == "no numbers":
        return values * np.float32(np.nan)
    if wrong == "not normalised":
        return values * 3
    if wrong == "a row missing":
        return values[1:]
    return values


def exported(name: str, values: "NDArray[np.float32]") -> str:
    """As `exportJSONOutput` prints it: six significant digits, and not always JSON."""
    numbers = ", ".join("-nan" if value != value else f"{value:.6g}" for value in values.ravel())
    dimensions = "x".join(map(str, values.shape))
    return f'[\n  {{ "name" : "{name}"\n  , "dimensions" : "{dimensions}"\n  , "values" : [ {numbers} ]\n  }}\n]\n'


if __name__ == "__main__":
    main()
