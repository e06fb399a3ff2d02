"""The choice of OpenBLAS's kernel."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clipchoir_steps import blas

AVX2 = {"sse2", "avx", "avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


class OpenBlas:
    """Picks a kernel, and takes any other that it is asked for unless that one is broken."""

    def __init__(self, picks: str | None, broken: str = "") -> None:
        self.picks = picks
        self.broken = broken
        self.asked: list[str | None] = []

    def __call__(self, kernel: str | None) -> str | None:
        self.asked.append(kernel)
        return self.picks if kernel is None else kernel if kernel != self.broken else None


@pytest.mark.parametrize(
    ("flags", "picked", "chosen"),
    [
        (AVX512, "Prescott", "SkylakeX"),
        (AVX512, "Haswell", "SkylakeX"),
        (AVX512, "Zen", "SkylakeX"),
        (AVX512, "Cooperlake", None),
        (AVX512, "SkylakeX", None),
        (AVX512, "SomethingNewer", None),
        (AVX512, None, None),
        (AVX2, "Prescott", "Haswell"),
        (AVX2, "Zen", None),
        (AVX2 - {"fma"}, "Prescott", None),
        (set(), "Prescott", None),
    ],
)
def test_a_faster_kernel_is_chosen_by_the_flags_where_openblas_did_not(
    flags: set[str], picked: str | None, chosen: str | None
) -> None:
    assert blas.choose_kernel(flags, OpenBlas(picked)) == chosen


def test_a_kernel_that_fails_its_check_is_not_chosen() -> None:
    assert blas.choose_kernel(AVX512, OpenBlas("Prescott", broken="SkylakeX")) == "Haswell"
    assert blas.choose_kernel(AVX512, OpenBlas("Haswell", broken="SkylakeX")) is None
    assert blas.choose_kernel(AVX2, OpenBlas("Prescott", broken="Haswell")) is None


def test_nothing_is_tried_without_the_flags() -> None:
    openblas = OpenBlas("Prescott")
    blas.choose_kernel({"sse2"}, openblas)
    assert openblas.asked == []


def test_what_the_environment_says_stands() -> None:
    assert blas.kernel_variable({blas.CORE_TYPE: "Prescott"}) == {}


def test_the_flags_are_the_processors(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: some\nflags\t\t: fpu avx2 fma\nbugs\t: x\n\nflags\t\t: fpu\n")
    assert blas.processor_flags(cpuinfo) == {"fpu", "avx2", "fma"}
    cpuinfo.write_text("Features\t: fp asimd\n")
    assert blas.processor_flags(cpuinfo) == set()
    assert blas.processor_flags(tmp_path / "none") == set()


@pytest.mark.skipif(not blas.processor_flags() >= {"avx2", "fma"}, reason="the processor has none of the kernels")
def test_a_kernel_is_probed_in_a_process_of_its_own() -> None:
    assert blas.probe("Haswell") == "Haswell"
    assert blas.probe("Prescott") == "Prescott"


def started_with(variables: dict[str, str]) -> str:
    """The kernel of a process that asks for a fast one before it imports NumPy."""
    program = textwrap.dedent("""
        from clipchoir_steps.blas import use_fast_kernel
        use_fast_kernel()
        import json, numpy
        from threadpoolctl import threadpool_info
        print(json.dumps([each["architecture"] for each in threadpool_info() if each["internal_api"] == "openblas"]))
    """)
    environment = {name: value for name, value in os.environ.items() if name != blas.CORE_TYPE} | variables
    command = [sys.executable, "-c", program]
    (kernel,) = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    return str(kernel)


def test_a_process_computes_with_a_kernel_of_its_processors_best_instructions() -> None:
    flags = blas.processor_flags()
    taken = started_with({})
    assert blas.choose_kernel(flags, OpenBlas(taken)) is None
    if flags >= {"avx2", "fma"}:
        assert started_with({blas.CORE_TYPE: "Prescott"}) == "Prescott"
