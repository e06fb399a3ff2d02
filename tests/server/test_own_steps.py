"""A repository runs the steps that it was built with, whatever is installed beside it."""

import shutil
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient

import clipchoir_steps
from clipchoir_server.triton import Address, serving
from clipchoir_steps.layout import STEPS
from tests.conftest import SAMPLES, infer


def test_other_steps_that_are_installed_are_not_run(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs are broken; what the server's own backend takes of the package is sound."""
    installed = shutil.copytree(Path(clipchoir_steps.__file__).parent, tmp_path / "clipchoir_steps")
    entered = tmp_path / "entered"
    trap = f"open({str(entered)!r}, 'a').write(__name__)\nraise ImportError('of another version')\n"
    broken = list(installed.glob("*/step.py"))
    assert len(broken) == len(STEPS)
    for path in (*broken, installed / "scoring" / "formula.py", installed / "preprocess" / "decode.py"):
        path.write_text(trap)
    # Triton's Python looks into the working directory first, and does not heed PYTHONPATH.
    monkeypatch.chdir(tmp_path)
    with (
        serving(repository, Address.choose()) as triton,
        grpcclient.InferenceServerClient(triton.address.grpc) as client,
    ):
        assert infer(client, [SAMPLES[0].read_bytes()], ["label"])["label"].shape == (1, 1)
        for step in STEPS:
            assert client.is_model_ready(step)
    assert not entered.exists()
