"""Triton's view of the label sets, as JSON: an empty name lists them, a name or an id shows one, a spec is checked.

`ensembling` keeps them; a model cannot read its sibling's folder everywhere, so it is asked.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class LabelSetsStep:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [_respond(request) for request in requests]


def _respond(request: Any) -> Any:
    name = pb_utils.get_input_tensor_by_name(request, "name").as_numpy().flat[0].decode(errors="replace")
    kind = "inspect" if name.lstrip().startswith("{") else "show"
    query = json.dumps({kind: name} if name else {"list": True})
    asked = pb_utils.InferenceRequest(
        model_name="ensembling",
        requested_output_names=["answer"],
        inputs=[pb_utils.Tensor("query", np.array([[query]], np.object_))],
    )
    response = asked.exec()
    if response.has_error():
        return pb_utils.InferenceResponse(error=response.error())
    answer = pb_utils.get_output_tensor_by_name(response, "answer").as_numpy().reshape(1)
    content = json.loads(answer[0])
    if "error" in content:
        code = getattr(pb_utils.TritonError, content["code"])
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(content["error"], code))
    return pb_utils.InferenceResponse([pb_utils.Tensor("answer", answer)])
