"""Triton's view of the preprocessing step: encoded images -> `pixels` and a `status` per row (empty: decoded)."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from clipchoir_images import preprocess


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        outputs = json.loads(args["model_config"])["output"]
        # {224: "pixels"}, or {224: "pixels_224", 336: "pixels_336"}
        self.tensor_names = {int(output["dims"][0]): output["name"] for output in outputs if output["name"] != "status"}
        self.preprocess = partial(preprocess, sizes=list(self.tensor_names))
        self.threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")

    def execute(self, requests: list[Any]) -> list[Any]:
        batches = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0] for request in requests]
        rows = self.threads.map(self.preprocess, [data for batch in batches for data in batch])
        return [self._response(list(islice(rows, len(batch)))) for batch in batches]

    def _response(self, rows: list[Any]) -> Any:
        tensors = [
            pb_utils.Tensor(name, np.stack([row.by_size[size] for row in rows]))  # (N, S, S, 3)
            for size, name in self.tensor_names.items()
        ]
        status = np.array([[row.error] for row in rows], np.object_)  # (N, 1)
        return pb_utils.InferenceResponse([*tensors, pb_utils.Tensor("status", status)])

    def finalize(self) -> None:
        self.threads.shutdown(cancel_futures=True)
