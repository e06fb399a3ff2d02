"""docs/contract.md: its commands run against a real server, its tables are compared with the config."""

import json
import re
import subprocess
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as grpcclient
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from clipchoir import Client
from clipchoir_server.triton import Triton
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "contract.md").read_text()
HTTP_IMAGE, HTTP_JSON, GRPCURL = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
SEA = ROOT / "demo" / "samples" / "Sea" / "sea_00.jpg"


def run_script(server: Triton, script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    (folder / "demo").symlink_to(ROOT / "demo")
    script = script.replace("localhost:8000", server.address.http).replace("localhost:8001", server.address.grpc)
    return subprocess.run(
        ["/bin/bash", "-euc", script.replace("curl ", "curl --silent --fail ")],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=True,
    )


def test_an_image_as_the_body(server: Triton, tmp_path: Path) -> None:
    run_script(server, HTTP_IMAGE, tmp_path)
    assert b"Sea" in (tmp_path / "answer.bin").read_bytes()


def test_http_with_json_gets_what_the_client_gets(server: Triton, tmp_path: Path) -> None:
    answer = json.loads(run_script(server, HTTP_JSON, tmp_path).stdout)
    values = {output["name"]: output["data"] for output in answer["outputs"]}
    with Client(server.address.grpc) as client:
        (expected,) = client.classify([SEA], weights=[0.54, 0.46])
    assert values["label"] == [expected.label]
    np.testing.assert_allclose(values["score"], [expected.score], atol=1e-5)


def test_the_grpcurl_message_is_right(server: Triton, tmp_path: Path) -> None:
    """grpcurl itself may not be installed: what it would send is put together by the same script, and sent."""
    method = re.search(r"inference\.GRPCInferenceService/(\w+)", GRPCURL)
    assert method
    script = re.sub(r"grpcurl .*<<END", "cat <<END", GRPCURL)
    message = json_format.Parse(run_script(server, script, tmp_path).stdout, service_pb2.ModelInferRequest())
    with grpc.insecure_channel(server.address.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = getattr(stub, method[1])(message, timeout=30)
    with Client(server.address.grpc) as client:
        (expected,) = client.classify([SEA], weights=[0.54, 0.46])
    names = [output.name for output in response.outputs]
    raw = dict(zip(names, response.raw_output_contents, strict=True))
    assert raw["label"][4:].decode() == expected.label
    np.testing.assert_allclose(np.frombuffer(raw["score"], np.float32), expected.score, atol=1e-5)


def test_the_table_lists_every_tensor(triton: grpcclient.InferenceServerClient) -> None:
    config = triton.get_model_config("zero_shot").config
    tensors = {("in", each.name) for each in config.input} | {
        ("out", re.sub("^(metaclip|evaclip)_", "<encoder>_", each.name)) for each in config.output
    }
    assert set(re.findall(r"^\| (in|out) `(.*?)`", TEXT, re.MULTILINE)) == tensors
    assert f"`max_batch_size` is {config.max_batch_size}" in TEXT
    for name in config.parameters:
        assert f"`{name}`" in TEXT, name
