"""The Triton inside the `nvidia-pytriton` wheel: its files, its backends and the environment they need."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from clipchoir_server.errors import ServerError

_LOADER_FAILED = 127  # exit code of a program whose shared libraries are missing


def triton_folder() -> Path:
    """Where the wheel keeps Triton.

    Raises:
        ServerError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError("the embedded Triton is not installed: pip install '.[server,cpu]'")
    return Path(spec.origin).parent / "tritonserver"


def prepare_backends(folder: Path) -> None:
    """Lay out a backend directory: Triton's Python backend with this Python's stub, and our onnxruntime backend.

    Raises:
        ServerError: there is no stub for this Python, or it does not start.
    """
    triton = triton_folder()
    shutil.copytree(triton / "backends" / "python", folder / "python")
    version = _python_version()
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(f"the embedded Triton has no stub for Python {version}; use Python 3.10, 3.11 or 3.12")
    check_that_it_starts(stub)
    shutil.copy(stub, folder / "python")
    shutil.copytree(Path(__file__).parent / "backends" / "onnxruntime", folder / "onnxruntime")


def check_that_it_starts(stub: Path) -> None:
    """A stub that cannot start would leave tritonserver waiting for ever.

    Raises:
        ServerError: a library is missing.
    """
    trial = subprocess.run([stub], env=environment(), capture_output=True, text=True, check=False)
    if trial.returncode == _LOADER_FAILED:
        version = _python_version()
        raise ServerError(
            f"the embedded Triton cannot start Python: {trial.stderr.strip()}\n"
            f"It needs the shared library of Python {version}: install it (Debian and Ubuntu: "
            f"apt-get install libpython{version}), or use a Python that was built with --enable-shared"
        )


def environment() -> dict[str, str]:
    """The variables that tritonserver and its stubs need, with those of this process."""
    # The stub links against this Python's own libpython, which is not always where the loader looks.
    libraries = [sysconfig.get_config_var("LIBDIR"), str(triton_folder().parents[1] / "nvidia_pytriton.libs")]
    variables = dict(os.environ)
    # The stub finds its Python, and with it this environment's packages, through PATH.
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
    inherited = variables.get("LD_LIBRARY_PATH")
    variables["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, inherited] if inherited else libraries)
    return variables


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
