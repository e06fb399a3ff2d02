"""Triton's view of the label sets, as JSON: an empty name lists them, a name or an id shows one, a spec is checked.

`ensembling` keeps them; a model cannot read its sibling's folder everywhere, so it is asked.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from clipchoir_steps.bls import ModelCallError, ask
from clipchoir_steps.label_sets.query import InspectSpec, ListSets, RefusedError, ShowSet, read_answer


class LabelSetsStep:
    """The model `label_sets`: STRING `name` -> JSON STRING `answer`."""

    def execute(self, requests: list[Any]) -> list[Any]:
        return [_respond(request) for request in requests]


def _respond(request: Any) -> Any:
    name = pb_utils.get_input_tensor_by_name(request, "name").as_numpy().flat[0].decode(errors="replace")
    try:
        if not name:
            text = ask(pb_utils, ListSets())
        else:
            text = ask(pb_utils, InspectSpec(name) if name.lstrip().startswith("{") else ShowSet(name))
        read_answer(text)
    except RefusedError as error:
        code = getattr(pb_utils.TritonError, error.code)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
    except ModelCallError as error:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
    return pb_utils.InferenceResponse([pb_utils.Tensor("answer", np.array([text], np.object_))])
