"""The step inside a real tritonserver: settings from the spec, metrics, logs, a request that fails alone."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir_export.build.steps import copy_step, write_source
from clipchoir_export.configs import Identity, render_configs
from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import ServingSpec, find_ensemble, load_ensemble
from clipchoir_server.triton import Address, ServerError, Triton, serving
from clipchoir_steps import layout
from clipchoir_steps.preprocess.decode import ErrorKind
from clipchoir_steps.preprocess.probe import MADE_BY, pixels_digest
from tests.conftest import encoded, metrics, noise

SERVING = ServingSpec(max_image_bytes=100_000, max_image_pixels=64_000, max_image_side=600, decode_threads=2)
SIZE = 56
BUG = b"this row meets a bug"
COUNTERS = "clipchoir_(?:images|decode_errors)_total"
ENSEMBLE = f"""
name: "zero_shot"
platform: "ensemble"
max_batch_size: 64
input [ {{ name: "image" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [
  {{ name: "pixels" data_type: TYPE_UINT8 dims: [ {SIZE}, {SIZE}, 3 ] }},
  {{ name: "status" data_type: TYPE_STRING dims: [ 1 ] }}
]
ensemble_scheduling {{ step [ {{
  model_name: "preprocess" model_version: -1
  input_map {{ key: "image" value: "image" }}
  output_map [ {{ key: "pixels" value: "pixels" }}, {{ key: "status" value: "status" }} ]
}} ] }}
parameters [ {{ key: "repository_format" value {{ string_value: "{layout.FORMAT}" }} }} ]
"""


@pytest.fixture(scope="module")
def step_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This step alone: two instances, tight limits, and a bug that one image meets."""
    folder = tmp_path_factory.mktemp("step")
    spec = load_ensemble(find_ensemble("demo")).model_copy(update={"serving": SERVING})
    architectures = {
        encoder.name: Architecture(SIZE, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) for encoder in spec.encoders
    }
    write_source(spec, architectures, folder / "all")
    repository = folder / "repository"
    (repository / "zero_shot" / "1").mkdir(parents=True)
    (repository / "zero_shot" / "config.pbtxt").write_text(ENSEMBLE)
    (folder / "all" / "preprocess").rename(repository / "preprocess")
    copy_step("preprocess", repository / "preprocess" / "1")
    config = repository / "preprocess" / "config.pbtxt"
    identity = Identity({}, "1")
    config.write_text(
        render_configs(spec, architectures, identity)[Path("preprocess/config.pbtxt")] + "instance_group { count: 2 }"
    )
    images = repository / "preprocess" / "1" / "clipchoir_steps" / "preprocess" / "decode.py"
    stumble = f'    if data == {BUG!r}:\n        raise RuntimeError("a bug")\n'
    images.write_text(
        images.read_text().replace("    image = _open(data, limits)\n", f"{stumble}    image = _open(data, limits)\n")
    )
    return repository


@pytest.fixture(scope="module")
def step(step_repository: Path) -> Iterator[Triton]:
    with serving(step_repository, Address.choose()) as triton:
        yield triton


@pytest.fixture(scope="module")
def client(step: Triton) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(step.address.grpc) as client:
        client.update_log_settings({"log_info": True})
        yield client


def infer(client: grpcclient.InferenceServerClient, rows: list[bytes], request_id: str = "") -> list[str]:
    """The rows' statuses."""
    image = grpcclient.InferInput("image", [len(rows), 1], "BYTES")
    image.set_data_from_numpy(np.array([[row] for row in rows], np.object_))
    answer = client.infer("zero_shot", [image], request_id=request_id, client_timeout=60)
    assert answer.as_numpy("pixels").shape == (len(rows), SIZE, SIZE, 3)
    return [status.decode() for status in answer.as_numpy("status")[:, 0]]


def events(step: Triton, name: str, request_id: str) -> list[dict]:
    """Lines of the log with this event. Triton writes a message as a quoted string."""
    for _ in range(100):  # the log comes through a pipe
        messages = re.findall(r'^[IWE]\d+ .*?\] (".*")$', step.log(), re.MULTILINE)
        found = [json.loads(json.loads(message)) for message in messages if r"{\"event\":" in message]
        if wanted := [each for each in found if (each["event"], each["request_id"]) == (name, request_id)]:
            return wanted
        time.sleep(0.05)
    return []


def images_total(outcome: str) -> str:
    return f'clipchoir_images_total{{outcome="{outcome}"}}'


def errors_total(kind: str) -> str:
    return f'clipchoir_decode_errors_total{{kind="{kind}"}}'


def test_every_counter_is_there_from_the_start_and_warming_up_is_not_counted(step: Triton) -> None:
    names = [images_total("decoded"), images_total("rejected"), *(errors_total(kind.value) for kind in ErrorKind)]
    assert metrics(step.address.metrics, COUNTERS) == dict.fromkeys(names, 0)


def test_images_are_counted_by_outcome_and_errors_by_kind_over_all_instances(
    step: Triton, client: grpcclient.InferenceServerClient
) -> None:
    good = encoded(noise(0), "JPEG")
    before = metrics(step.address.metrics, COUNTERS)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: infer(client, [good, good, b"", b"text", good[:2_000]]), range(40)))
    counted = {
        name: value - before[name]
        for name, value in metrics(step.address.metrics, COUNTERS).items()
        if value != before[name]
    }
    assert counted == {
        images_total("decoded"): 80,
        images_total("rejected"): 120,
        errors_total("empty"): 40,
        errors_total("unknown_format"): 40,
        errors_total("truncated"): 40,
    }


def test_the_specs_limits_hold(client: grpcclient.InferenceServerClient) -> None:
    statuses = infer(
        client, [b"x" * 100_001, encoded(noise(1, (321, 200))), encoded(noise(1, (601, 2))), encoded(noise(1))]
    )
    for status, limit in zip(statuses, ("100,000 bytes", "64,000 pixels", "600 pixels"), strict=False):
        assert f"limit of {limit}" in status
    assert statuses[3] == ""


def test_a_rejected_image_is_logged_with_step_and_request_id(
    step: Triton, client: grpcclient.InferenceServerClient
) -> None:
    time.sleep(1.1)  # at most one such line a second and instance
    infer(client, [encoded(noise(2)), b"", b"text"], request_id='the "first"')
    (line,) = events(step, "images_rejected", 'the "first"')
    assert line["step"] == "preprocess"
    assert line["kinds"] == {"empty": 1, "unknown_format": 1}
    assert line["first"] == {"row": 1, "error": "the image is empty (0 bytes)"}


def test_a_bug_is_logged_and_fails_its_own_request_alone(
    step: Triton, client: grpcclient.InferenceServerClient
) -> None:
    def send(number: int) -> list[str] | InferenceServerException:
        rows = [encoded(noise(3)), BUG] if number % 4 == 0 else [encoded(noise(3))]
        try:
            return infer(client, rows, f"request {number}")
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(16) as threads:
        for number, answer in enumerate(threads.map(send, range(16))):
            if number % 4:
                assert answer == [""]
            else:
                assert isinstance(answer, InferenceServerException)
                assert "preprocess: RuntimeError: a bug" in answer.message()
                (line,) = events(step, "request_failed", f"request {number}")
                assert line == {
                    "event": "request_failed",
                    "step": "preprocess",
                    "request_id": f"request {number}",
                    "error": "RuntimeError: a bug",
                }


def test_it_refuses_to_load_where_other_pixels_would_be_made(step_repository: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(step_repository, tmp_path / "repository")
    config = repository / "preprocess" / "config.pbtxt"
    digest = pixels_digest(SIZE, SERVING.jpeg_scaled_decoding)
    other = config.read_text().replace(f"{SIZE}={digest}", f"{SIZE}=0123456789abcdef").replace(MADE_BY, "Pillow 99.0")
    config.write_text(other)
    with (
        pytest.raises(ServerError, match=rf"preprocess: .*{MADE_BY} decodes .* otherwise than Pillow 99\.0.*refresh"),
        serving(repository, Address.choose()),
    ):
        pass
