"""Triton's view of the preprocessing step: encoded images -> `pixels` and a `status` per row (empty: decoded)."""

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from clipchoir_steps.counters import Counters
from clipchoir_steps.deferred import Later
from clipchoir_steps.events import Pace, event
from clipchoir_steps.preprocess.batch import Batch, Decoder
from clipchoir_steps.preprocess.decode import ErrorKind
from clipchoir_steps.preprocess.parameters import ParameterCheck, RefusedError
from clipchoir_steps.preprocess.settings import Settings

_LOG_INTERVAL = 1.0  # seconds between two lines about undecodable images


class PreprocessStep:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        settings = Settings.parse({key: value["string_value"] for key, value in config["parameters"].items()})
        # {224: "pixels"}, or {224: "pixels_224", 336: "pixels_336"}
        outputs = [output for output in config["output"] if output["name"] != "status"]
        self.tensor_names = {int(output["dims"][0]): output["name"] for output in outputs}
        self.step = args["model_name"]
        self.pace = Pace(_LOG_INTERVAL)
        self.images = Counters(
            pb_utils, "clipchoir_images_total", "Images by outcome.", "outcome", ["decoded", "rejected"]
        )
        self.errors = Counters(
            pb_utils,
            "clipchoir_decode_errors_total",
            "Rejected images by what is wrong with them.",
            "kind",
            [kind.value for kind in ErrorKind],
        )
        # This process is ours alone. PIL's own check of sizes sees some images before ours does; what it warns about,
        # such as metadata that it cannot read, would be remembered for ever.
        Image.MAX_IMAGE_PIXELS = settings.limits.max_pixels
        warnings.filterwarnings("ignore", module="PIL")
        self.check = ParameterCheck(_ask)
        self.decoder = Decoder(settings, self.tensor_names)
        self.decoder.warm_up()
        self.later = Later(pb_utils, self.step, self._answers)

    def execute(self, requests: list[Any]) -> list[None]:
        return self.later.take(requests)

    def finalize(self) -> None:
        self.later.close()
        self.decoder.close()

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        admitted = [self._admit(request) for request in requests]
        batches = [batch for batch in admitted if isinstance(batch, Batch)]
        self.decoder.decode(batches)
        self._count([batch for batch in batches if not batch.failure])
        return [
            self._respond(request, batch) if isinstance(batch, Batch) else batch
            for request, batch in zip(requests, admitted, strict=True)
        ]

    def _admit(self, request: Any) -> Any:
        """The request's rows, or the response that refuses it before any of them is decoded."""
        try:
            self.check(request.parameters())
            rows = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]  # (N,) bytes
            return Batch(rows, self.tensor_names)
        except RefusedError as error:
            code = getattr(pb_utils.TritonError, error.code)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # it must not fail the other requests
            return self._failure(request, error)

    def _respond(self, request: Any, batch: Batch) -> Any:
        if batch.failure:
            return self._failure(request, batch.failure)
        if any(batch.rejections):
            self._log_rejected(request, batch)
        try:
            status = np.array([[each.message if each else ""] for each in batch.rejections], np.object_)  # (N, 1)
            tensors = [pb_utils.Tensor(name, batch.pixels[size]) for size, name in self.tensor_names.items()]
            return pb_utils.InferenceResponse([*tensors, pb_utils.Tensor("status", status)])
        except Exception as error:
            return self._failure(request, error)

    def _count(self, batches: Sequence[Batch]) -> None:
        kinds = Counter(each.kind.value for batch in batches for each in batch.rejections if each)
        images = sum(len(batch.rows) for batch in batches)
        self.images.add(Counter(decoded=images - kinds.total(), rejected=kinds.total()))
        self.errors.add(kinds)

    def _log_rejected(self, request: Any, batch: Batch) -> None:
        unlogged = self.pace.admit()
        if unlogged is None:
            return
        rejected = {row: each for row, each in enumerate(batch.rejections) if each}
        first = min(rejected)
        pb_utils.Logger.log_info(
            event(
                "images_rejected",
                self.step,
                request.request_id(),
                kinds=Counter(each.kind.value for each in rejected.values()),
                first={"row": first, "error": rejected[first].message},
                requests_not_logged=unlogged,
            )
        )

    def _failure(self, request: Any, error: Exception) -> Any:
        message = f"{type(error).__name__}: {error}"
        pb_utils.Logger.log_error(event("request_failed", self.step, request.request_id(), error=message))
        return pb_utils.InferenceResponse(
            error=pb_utils.TritonError(f"{self.step}: {message}", pb_utils.TritonError.INTERNAL)
        )


def _ask(query: str) -> dict[str, str]:
    request = pb_utils.InferenceRequest(
        model_name="ensembling",
        requested_output_names=["answer"],
        inputs=[pb_utils.Tensor("query", np.array([[query]], np.object_))],
    )
    response = request.exec()
    if response.has_error():
        raise RuntimeError(response.error().message())
    return dict(json.loads(pb_utils.get_output_tensor_by_name(response, "answer").as_numpy().flat[0]))
