"""The Triton contract that clients in any language rely on, over real gRPC and HTTP."""

import json
import struct
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir_server.triton import Triton
from tests.conftest import ROOT, encoded, infer, noise
from tests.support import reference

SCENES = ROOT / "export" / "label_sets" / "scenes.toml"
CLASSES = ["Buildings", "Forests", "Glacier", "Mountains", "Sea", "Street"]
OUTPUTS = {
    "label": ("BYTES", [1]),
    "score": ("FP32", [1]),
    "scores": ("FP32", [-1]),
    "classes": ("BYTES", [-1]),
    "encoder_scores": ("FP32", [2, -1]),
    "metaclip_embedding": ("FP32", None),
    "evaclip_embedding": ("FP32", None),
    "error": ("BYTES", [1]),
}


def test_the_ensemble_has_the_documented_inputs_and_outputs(triton: grpcclient.InferenceServerClient) -> None:
    metadata = triton.get_model_metadata("zero_shot", as_json=True)
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": ["-1", "1"]}]
    outputs = {output["name"]: (output["datatype"], output["shape"][1:]) for output in metadata["outputs"]}
    assert outputs.keys() == OUTPUTS.keys()
    for name, (datatype, dims) in OUTPUTS.items():
        assert outputs[name][0] == datatype
        if dims is not None:
            assert outputs[name][1] == [str(dim) for dim in dims]


def test_the_config_publishes_encoders_default_label_set_and_version(
    triton: grpcclient.InferenceServerClient,
) -> None:
    config = triton.get_model_config("zero_shot").config
    assert config.max_batch_size == 64
    assert config.parameters["encoders"].string_value == "metaclip,evaclip"
    assert config.parameters["default_label_set"].string_value == "scenes"
    assert config.parameters["repository_format"].string_value == "2"
    assert len(config.parameters["repository_version"].string_value) == 12


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_output_can_be_requested_alone(triton: grpcclient.InferenceServerClient, output: str) -> None:
    rows = [encoded(noise(seed)) for seed in range(3)]
    everything = infer(triton, rows, list(OUTPUTS))
    alone = infer(triton, rows, [output])[output]
    assert alone.shape == everything[output].shape
    assert alone.shape[0] == 3
    if alone.dtype == np.float32:
        np.testing.assert_allclose(alone, everything[output], atol=1e-6)
    else:
        assert (alone == everything[output]).all()


def test_any_pair_of_outputs_can_be_requested(triton: grpcclient.InferenceServerClient) -> None:
    row = [encoded(noise(0))]
    for first in OUTPUTS:
        for second in OUTPUTS:
            if first < second:
                assert infer(triton, row, [first, second]).keys() == {first, second}


def test_outputs_belong_together(triton: grpcclient.InferenceServerClient) -> None:
    answer = infer(triton, [encoded(noise(seed)) for seed in range(5)], list(OUTPUTS))
    assert [[name.decode() for name in row] for row in answer["classes"]] == [CLASSES] * 5
    np.testing.assert_allclose(answer["scores"].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(answer["encoder_scores"].sum(axis=2), 1, atol=1e-5)
    best = answer["scores"].argmax(axis=1)
    assert [label.decode() for label in answer["label"][:, 0]] == [CLASSES[index] for index in best]
    assert answer["score"][:, 0].tolist() == answer["scores"].max(axis=1).tolist()
    assert (answer["error"] == b"").all()
    for encoder in ("metaclip", "evaclip"):
        np.testing.assert_allclose(np.linalg.norm(answer[f"{encoder}_embedding"], axis=1), 1, atol=1e-5)


def test_a_batch_of_64_is_answered_in_order(triton: grpcclient.InferenceServerClient) -> None:
    rows = [encoded(noise(seed)) for seed in range(64)]
    together = infer(triton, rows, ["metaclip_embedding"])["metaclip_embedding"]
    for index in (0, 1, 31, 63):
        alone = infer(triton, [rows[index]], ["metaclip_embedding"])["metaclip_embedding"]
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)


def test_a_named_label_set_with_unequal_prompt_counts(triton: grpcclient.InferenceServerClient, spec: Path) -> None:
    images = [noise(seed) for seed in range(4)]
    answer = infer(triton, [encoded(image) for image in images], ["scores", "classes", "label"], label_set="moods")
    expected = reference.classify(
        [reference.pixels(image) for image in images], spec.parents[1] / "label_sets/moods.toml"
    )
    assert answer["classes"][0].tolist() == [b"a bright day", b"night", b"fog"]
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "formula"),
    [
        ({"weights": "0.9,0.1"}, {"weights": (0.9, 0.1)}),
        ({"weights": "3, 1"}, {"weights": (0.75, 0.25)}),
        ({"weights": "0,1"}, {"weights": (0, 1)}),
        ({"weights": "1e39,1e39"}, {"weights": (1, 1)}),
        ({"weights": "1e-50,3e-50"}, {"weights": (1, 3)}),
        ({"drop_below": "0.002"}, {"drop_below": 0.002}),
        ({"drop_below": 0.9}, {"drop_below": 0.9}),
        ({"logit_scale": "20.5"}, {"logit_scale": 20.5}),
        ({"logit_scale": 20}, {"logit_scale": 20.0}),
    ],
)
def test_request_parameters_change_the_scores_as_the_formula_says(
    triton: grpcclient.InferenceServerClient, parameters: dict[str, object], formula: dict[str, object]
) -> None:
    images = [noise(seed) for seed in range(3)]
    outputs = ["scores", "encoder_scores"]
    answer = infer(triton, [encoded(image) for image in images], outputs, **parameters)
    expected = reference.classify([reference.pixels(image) for image in images], SCENES, **formula)  # type: ignore[arg-type]
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-4)
    np.testing.assert_allclose(answer["encoder_scores"], expected.encoder_scores, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "status", "message"),
    [
        (
            {"label_set": "pets"},
            "NOT_FOUND",
            'label set "pets" is not in this repository, which has: moods, scenes',
        ),
        ({"label_set": 5}, "INVALID_ARGUMENT", "label_set must be the name of a label set"),
        ({"weights": "0.5"}, "INVALID_ARGUMENT", "2 numbers separated by commas, for metaclip, evaclip"),
        ({"weights": "a,b"}, "INVALID_ARGUMENT", "must be a number, got 'a'"),
        ({"weights": "-1,2"}, "INVALID_ARGUMENT", "at least 0"),
        ({"weights": "0,0"}, "INVALID_ARGUMENT", "not all 0"),
        ({"weights": "nan,1"}, "INVALID_ARGUMENT", "finite"),
        ({"drop_below": "1.5"}, "INVALID_ARGUMENT", "drop_below must be at least 0 and below 1"),
        ({"drop_below": True}, "INVALID_ARGUMENT", "drop_below must be a number"),
        ({"label_set_spec": "{}"}, "INVALID_ARGUMENT", "classes must be a list of strings"),
        ({"logit_scale": "0"}, "INVALID_ARGUMENT", "logit_scale must be above 0"),
        ({"logit_scale": "inf"}, "INVALID_ARGUMENT", "finite"),
    ],
)
def test_bad_parameters_get_typed_errors_that_say_what_is_right(
    triton: grpcclient.InferenceServerClient, parameters: dict[str, object], status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, [encoded(noise(0))], ["label"], **parameters)
    assert caught.value.status() == f"StatusCode.{status}"
    assert message in caught.value.message()


def test_images_of_requests_batched_together_stay_apart(triton: grpcclient.InferenceServerClient) -> None:
    outputs = ["metaclip_embedding", "evaclip_embedding"]
    rows = [[encoded(noise(10 * count + index)) for index in range(count)] for count in (1, 2, 3, 5, 1, 4)]
    alone = [infer(triton, each, outputs) for each in rows]
    with ThreadPoolExecutor(len(rows)) as threads:
        for _ in range(10):
            together = threads.map(lambda each: infer(triton, each, outputs), rows)
            for expected, actual in zip(alone, together, strict=True):
                for name in outputs:
                    np.testing.assert_allclose(actual[name], expected[name], atol=1e-5)


def test_options_of_requests_batched_together_stay_apart(triton: grpcclient.InferenceServerClient) -> None:
    row = [encoded(noise(1))]
    options = [{"weights": f"{index},{8 - index}"} for index in range(9)] + [{"label_set": "moods"}] * 3
    alone = [infer(triton, row, ["scores"], **parameters)["scores"] for parameters in options]
    with ThreadPoolExecutor(12) as threads:
        for _ in range(5):
            together = threads.map(lambda parameters: infer(triton, row, ["scores"], **parameters)["scores"], options)
            for expected, actual in zip(alone, together, strict=True):
                np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_jpeg_can_be_posted_over_http_as_it_is(server: Triton, triton: grpcclient.InferenceServerClient) -> None:
    jpeg = encoded(noise(2), "JPEG")
    request = urllib.request.Request(
        f"http://{server.address.http}/v2/models/zero_shot/infer",
        data=jpeg,
        headers={"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        header_length = int(response.headers["Inference-Header-Content-Length"])
        body = response.read()
    outputs = {}
    position = header_length
    for output in json.loads(body[:header_length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = body[position : position + size]
        position += size
    label = infer(triton, [jpeg], ["label"])["label"][0, 0]
    assert outputs["label"] == struct.pack("<I", len(label)) + label
    assert len(outputs["scores"]) == 4 * len(CLASSES)
