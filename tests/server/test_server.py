"""The command `clipchoir-server`: starting, stopping, and saying what is wrong."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from clipchoir_server.installation import check_that_it_starts
from clipchoir_server.repository import thread_defaults
from clipchoir_server.triton import Address, ServerError, Triton, serving
from clipchoir_steps import blas
from tests.conftest import BIN, encoded, infer, metrics, noise, run
from tests.support.launcher import FREE_PORTS, descendants, gone, started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_a_signal_stops_it_and_all_it_started(repository: Path, number: signal.Signals) -> None:
    with started(repository) as (process, address):
        with grpcclient.InferenceServerClient(address) as client:
            assert infer(client, [encoded(noise(0))], ["error"])["error"][0, 0] == b""
        below = descendants(process.pid)
        assert len(below) >= 5  # tritonserver, and a stub for each of the four models
        process.send_signal(number)
        assert process.wait(30) == 0
        assert gone(below)


def test_nothing_is_left_when_the_launcher_is_killed(repository: Path) -> None:
    with started(repository) as (process, _):
        below = descendants(process.pid)
        process.kill()
        process.wait(10)
        assert gone(below)


def test_it_ends_with_an_error_when_tritonserver_dies(repository: Path) -> None:
    with started(repository, "--on-dead-step", "exit") as (process, _):
        below = descendants(process.pid)
        for pid in below:
            if "tritonserver" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
                os.kill(pid, signal.SIGKILL)
        assert process.wait(30) == 1
        assert gone(below)
        assert process.stderr is not None
        assert "tritonserver ended with exit code -9" in process.stderr.read()


def test_a_signal_while_models_load_stops_it_and_all_it_started(repository: Path) -> None:
    command: list[str | Path] = [BIN / "clipchoir-server", repository, *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not (below := descendants(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert "serving" not in process.stdout.read()
        assert gone(below)


def test_a_broken_log_does_not_stop_the_server(repository: Path) -> None:
    given: list[str] = []

    def broken(line: str) -> None:
        given.append(line)
        raise BrokenPipeError

    address = Address.choose()
    with (
        serving(repository, address, on_line=broken),
        grpcclient.InferenceServerClient(address.grpc) as client,
    ):
        infer(client, [b"no image"], ["error"])
        client.update_log_settings({"log_verbose_level": 3})  # many more bytes than a pipe holds
        for seed in range(60):
            infer(client, [encoded(noise(seed))], ["label"])
    assert len(given) == 1


def event(line: str) -> dict[str, Any]:
    """The JSON object in a line of Triton's log, read as docs/preprocess.md says."""
    return dict(json.loads(json.loads(line.partition("] ")[2])))


def test_ignored_config_keys_are_told(copy: Path) -> None:
    config = copy / "metaclip" / "config.pbtxt"
    key = 'parameters [ { key: "cudnn_conv_algo_search" value { string_value: "1" } } ]'
    config.write_text(f"{config.read_text()}{key}\n")
    lines: list[str] = []
    with serving(copy, Address.choose(), on_line=lines.append):
        assert [event(line) for line in lines] == [
            {
                "event": "encoder_warning",
                "step": "metaclip",
                "warning": "this onnxruntime backend ignores the config key parameters.cudnn_conv_algo_search",
            }
        ]


def test_a_damaged_label_set_is_shown_at_the_start(copy: Path) -> None:
    (damaged,) = copy.glob("ensembling/1/label_sets/moods*")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    lines: list[str] = []
    with serving(copy, Address.choose(), on_line=lines.append):
        (shown,) = map(event, lines)
    assert (shown["event"], shown["step"]) == ("label_sets_warning", "ensembling")
    assert "moods" in shown["warning"]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU, about which warnings are shown")
def test_rejected_images_are_shown_and_nothing_else_of_a_server_that_is_well(repository: Path) -> None:
    address = Address.choose()
    lines: list[str] = []
    with (
        serving(repository, address, on_line=lines.append),
        grpcclient.InferenceServerClient(address.grpc) as client,
    ):
        assert lines == []
        for seed in range(20):
            infer(client, [encoded(noise(seed))], ["label"])
        infer(client, [b"no image"], ["error"])
        infer(client, [encoded(noise(0))], ["label"])
        for _ in range(100):  # the log comes through a pipe
            if lines:
                break
            time.sleep(0.1)
    (shown,) = map(event, lines)
    assert shown["event"] == "images_rejected"
    assert shown["kinds"] == {"unknown_format": 1}


def test_ports_must_differ_and_the_host_be_ipv4(repository: Path) -> None:
    result = run("clipchoir-server", repository, "--grpc-port", "19000", "--http-port", "19000", "--metrics-port", "0")
    assert result.returncode == 1
    assert "three different ports" in result.stderr
    result = run("clipchoir-server", repository, "--host", "::1", *FREE_PORTS)
    assert result.returncode == 1
    assert "takes IPv4 addresses" in result.stderr


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "copy"))


def test_a_variant_is_served_where_a_model_has_it(copy: Path) -> None:
    plain = (copy / "evaclip" / "config.pbtxt").read_text()
    delay = "max_queue_delay_microseconds: "
    (copy / "evaclip" / "configs" / "mine.pbtxt").write_text(re.sub(rf"{delay}\d+", f"{delay}7", plain))
    address = Address.choose()
    with serving(copy, address, config_name="mine"), grpcclient.InferenceServerClient(address.grpc) as client:
        delays = {
            name: client.get_model_config(name).config.dynamic_batching.max_queue_delay_microseconds
            for name in ("evaclip", "metaclip")
        }
        assert infer(client, [encoded(noise(0))], ["error"])["error"][0, 0] == b""
    assert delays == {"evaclip": 7, "metaclip": 2000}


def test_a_variant_that_no_model_has_is_told_with_those_there_are(repository: Path) -> None:
    result = run("clipchoir-server", repository, *FREE_PORTS, "--config-name", "tpu")
    assert result.returncode == 1
    assert result.stderr == f"error: no model of {repository} has a configs/tpu.pbtxt; there is gpu\n"


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU, on which the variant may well load")
def test_the_gpu_variant_on_a_machine_without_one_is_told(repository: Path) -> None:
    result = run("clipchoir-server", repository, *FREE_PORTS, "--config-name", "gpu")
    assert result.returncode == 1
    assert re.search(r"model (meta|eva)clip: .*GPU", result.stderr)


def without_weights(copy: Path) -> None:
    (copy / "metaclip" / "1" / "model.onnx").unlink()


def with_corrupt_weights(copy: Path) -> None:
    (copy / "evaclip" / "1" / "model.onnx").write_bytes(b"not onnx")


def with_an_impossible_warm_up(copy: Path) -> None:
    config = copy / "metaclip" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "1,16"', 'string_value: "1,-16"'))


def with_foreign_label_sets(copy: Path) -> None:
    config = copy / "ensembling" / "config.pbtxt"
    text = re.sub(r'("evaclip_fingerprint" value \{ string_value: )"1=[0-9a-f]+"', r'\1"1=0123"', config.read_text())
    config.write_text(text)


@pytest.mark.parametrize(
    ("damage", "model", "reason"),
    [
        (without_weights, "metaclip", r"model\.onnx is missing; build the repository with clipchoir-export build"),
        (with_corrupt_weights, "evaclip", r"Protobuf parsing failed"),
        (with_an_impossible_warm_up, "metaclip", r"negative dimensions are not allowed"),
        (with_foreign_label_sets, "ensembling", r"serves evaclip 0123; build the repository again"),
    ],
)
def test_a_model_that_does_not_load_is_named_with_its_own_error(
    copy: Path, damage: object, model: str, reason: str
) -> None:
    assert callable(damage)
    damage(copy)
    result = run("clipchoir-server", copy, *FREE_PORTS)
    assert result.returncode == 1
    assert f"model {model}: " in result.stderr
    assert re.search(reason, result.stderr)
    assert "serving" not in result.stdout


def test_the_version_and_the_help_are_printed() -> None:
    shown = run("clipchoir-server", "--version")
    assert (shown.returncode, shown.stdout) == (0, f"clipchoir-server {version('clipchoir')}\n")
    short, long = (run("clipchoir-server", option) for option in ("-h", "--help"))
    assert short.returncode == 0
    assert "--on-dead-step" in short.stdout == long.stdout


def test_a_folder_that_is_no_repository(tmp_path: Path) -> None:
    result = run("clipchoir-server", tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"error: {tmp_path} is not a clipchoir repository; build one with: clipchoir-export build demo"
    ]


def test_a_missing_python_library_is_told_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\necho 'libpython3.so: cannot open shared object file' >&2\nexit 127\n")
    stub.chmod(0o755)
    with pytest.raises(ServerError, match=r"cannot open shared object file\n.*apt-get install libpython3\."):
        check_that_it_starts(stub)


def test_a_taken_port_is_named(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("clipchoir-server", repository, *FREE_PORTS[2:], "--grpc-port", str(port))
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port" in result.stderr


@pytest.mark.parametrize(
    ("encoders", "cores", "threads"),
    [("metaclip,evaclip", 2, "1"), ("metaclip,evaclip", 16, "8"), ("a,b,c", 2, "1"), ("a", 4, "4")],
)
def test_the_encoders_share_the_cores(tmp_path: Path, encoders: str, cores: int, threads: str) -> None:
    (tmp_path / "zero_shot").mkdir()
    config = f'parameters [ {{ key: "encoders" value {{ string_value: "{encoders}" }} }} ]'
    (tmp_path / "zero_shot" / "config.pbtxt").write_text(config)
    assert thread_defaults(tmp_path, cores) == {"CLIPCHOIR_SESSION_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("content", [b"parameters [ {", b"\xff", None])
def test_a_config_that_cannot_be_read_is_left_to_triton(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "zero_shot").mkdir()
    if content is not None:
        (tmp_path / "zero_shot" / "config.pbtxt").write_bytes(content)
    assert thread_defaults(tmp_path, 4)["CLIPCHOIR_SESSION_THREADS"] == "4"


KERNEL_STEP = """
import numpy as np
import triton_python_backend_utils as pb_utils
from threadpoolctl import threadpool_info


class TritonPythonModel:
    def execute(self, requests):
        (found,) = (each["architecture"] for each in threadpool_info() if each["internal_api"] == "openblas")
        tensor = pb_utils.Tensor("kernel", np.array([found], np.object_))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]
"""


@pytest.mark.parametrize("given", [None, "Prescott"])
def test_a_step_computes_with_the_fastest_kernel_of_openblas_or_the_one_that_was_set(
    copy: Path, given: str | None
) -> None:
    (copy / "kernel" / "1").mkdir(parents=True)
    (copy / "kernel" / "1" / "model.py").write_text(KERNEL_STEP)
    (copy / "kernel" / "config.pbtxt").write_text(
        'backend: "python" input [ { name: "nothing" data_type: TYPE_FP32 dims: [ 1 ] } ] '
        'output [ { name: "kernel" data_type: TYPE_STRING dims: [ 1 ] } ]'
    )
    environment = {name: value for name, value in os.environ.items() if name != blas.CORE_TYPE}
    if given is not None:
        environment[blas.CORE_TYPE] = given
    with (
        started(copy, environment=environment) as (_, address),
        grpcclient.InferenceServerClient(address) as client,
    ):
        nothing = grpcclient.InferInput("nothing", [1], "FP32")
        nothing.set_data_from_numpy(np.zeros(1, np.float32))
        taken = client.infer("kernel", [nothing]).as_numpy("kernel")[0].decode()
    if given is not None:
        assert taken == given
    else:  # no other one would be faster
        assert blas.choose_kernel(blas.processor_flags(), lambda kernel: kernel or taken) is None


def test_the_time_of_the_passes_is_counted(server: Triton) -> None:
    def passes() -> dict[str, float]:
        return metrics(server.address.metrics, 'clipchoir_pass_seconds_total.*clip"')

    before = passes()
    with grpcclient.InferenceServerClient(server.address.grpc) as client:
        infer(client, [encoded(noise(seed), "JPEG") for seed in range(9)], ["score"])
    deadline = time.monotonic() + 10  # it is counted after the answer
    while not all(passes()[name] > seconds for name, seconds in before.items()) and time.monotonic() < deadline:
        time.sleep(0.1)
    grown = {name: seconds - before[name] for name, seconds in passes().items()}
    assert len(grown) == 2
    assert all(0 < seconds < 10 for seconds in grown.values())
