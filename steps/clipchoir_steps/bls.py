"""Calls of another model of the repository from a step (Triton's business logic scripting)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipchoir_steps.label_sets import query
from clipchoir_steps.layout import ENSEMBLING


class ModelCallError(Exception):
    """The model that was called has failed; the message is its name and its error."""


def call(pb_utils: Any, model: str, inputs: Mapping[str, np.ndarray], output: str) -> np.ndarray:
    """Run a model on these tensors, and return one of its outputs, in the memory of the CPU.

    Raises:
        ModelCallError: the model has failed.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise ModelCallError(f"{model}: {response.error().message()}")
    array: np.ndarray = pb_utils.get_output_tensor_by_name(response, output).as_numpy()
    return array


def ask(pb_utils: Any, question: query.Query) -> bytes:
    """What `ensembling` answers to a query, as JSON.

    Raises:
        ModelCallError: it does not answer.
    """
    text = np.array([[query.encode(question)]], np.object_)
    return bytes(call(pb_utils, ENSEMBLING, {"query": text}, "answer").flat[0])
