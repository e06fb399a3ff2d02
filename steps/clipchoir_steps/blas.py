"""Which kernel OpenBLAS computes NumPy's matrix products with.

OpenBLAS picks a kernel by the processor's model when it is loaded. On a processor that it does not know it falls back,
without a word, to one for the processors of 2004, which takes four times as long. The processor's flags tell better.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path

CORE_TYPE = "OPENBLAS_CORETYPE"
# The fastest first: OpenBLAS's name, how it ranks, and the flags that it needs.
_KERNELS = (
    ("SkylakeX", 2, frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})),
    ("Haswell", 1, frozenset({"avx2", "fma"})),
)
_RANK_OF_AVX2 = ("haswell", "zen", "excavator")
_RANK_OF_NEITHER = (
    "prescott", "core2", "penryn", "dunnington", "nehalem", "atom", "nano", "katmai", "coppermine", "northwood",
    "banias", "sandybridge", "athlon", "opteron", "opteron_sse3", "barcelona", "bobcat", "bulldozer", "piledriver",
    "steamroller", "generic", "unknown",
)  # fmt: skip
_PATIENCE = 60.0  # seconds
# Prints the kernel's name once its product is right; einsum computes the exact one without BLAS.
_PROBE = """
import ctypes, numpy as np
rng = np.random.default_rng(0)
one, other = (rng.standard_normal(shape, np.float32) for shape in ((129, 131), (131, 133)))
exact = np.einsum("ij,jk->ik", one.astype(np.float64), other.astype(np.float64))
assert np.abs(one @ other - exact).max() < 1e-4
for path in {line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line}:
    for name in ("openblas_get_corename64_", "openblas_get_corename", "scipy_openblas_get_corename64_"):
        function = getattr(ctypes.CDLL(path), name, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            print(function().decode())
            raise SystemExit
"""


def use_fast_kernel() -> None:
    """Set this process's `OPENBLAS_CORETYPE`; to be called before NumPy is imported, after which it does nothing."""
    if "numpy" not in sys.modules:
        os.environ.update(kernel_variable(os.environ))


def kernel_variable(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable to start a process with, so that its NumPy computes with the fastest kernel.

    Args:
        environment: of the process; what it says of the kernel is left as it is.

    Returns:
        Empty, or `OPENBLAS_CORETYPE` alone.
    """
    chosen = None if CORE_TYPE in environment else choose_kernel(processor_flags(), probe)
    return {} if chosen is None else {CORE_TYPE: chosen}


def choose_kernel(flags: Collection[str], probe: Callable[[str | None], str | None]) -> str | None:
    """The name of a kernel that is faster than the one that OpenBLAS picks.

    Args:
        flags: of the processor.
        probe: what OpenBLAS computes with when it is asked for a kernel, or for none.

    Returns:
        None where OpenBLAS's own choice is as good, or cannot be told.
    """
    possible = [(name, rank) for name, rank, needed in _KERNELS if needed <= set(flags)]
    picked = probe(None) if possible else None
    if picked is None:
        return None
    for name, rank in possible:
        if _rank(picked) >= rank:
            return None
        if probe(name) == name:
            return name
    return None


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this machine's processor that its kernel lets programs use; empty where it has no flags."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


@cache
def probe(kernel: str | None) -> str | None:
    """Try a kernel in a process of its own, against float64.

    Args:
        kernel: OpenBLAS's name of it; None: the one that OpenBLAS picks.

    Returns:
        The name of the kernel that computed; None: it computed wrongly or crashed, or NumPy has another BLAS.
    """
    environment = {name: value for name, value in os.environ.items() if name != CORE_TYPE}
    if kernel is not None:
        environment[CORE_TYPE] = kernel
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return tried.stdout.strip() or None


def _rank(kernel: str) -> int:
    """How fast a kernel is; those that are not listed are newer than this list."""
    if kernel.lower() in _RANK_OF_NEITHER:
        return 0
    return 1 if kernel.lower() in _RANK_OF_AVX2 else 2
