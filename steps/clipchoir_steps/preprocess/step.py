"""Triton's view of the preprocessing step: encoded images -> `pixels` and a `status` per row (empty: decoded)."""

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from clipchoir_steps.bls import ask
from clipchoir_steps.deferred import DeferredBatches, failure
from clipchoir_steps.events import Events, Pace
from clipchoir_steps.label_sets.query import RefusedError
from clipchoir_steps.metrics import DECODE_ERRORS, IMAGES, Metrics
from clipchoir_steps.preprocess.batch import Batch, Decoder
from clipchoir_steps.preprocess.decode import ErrorKind
from clipchoir_steps.preprocess.parameters import ParameterCheck
from clipchoir_steps.preprocess.probe import OtherPixelsError, check_pixels
from clipchoir_steps.preprocess.settings import Settings

_LOG_INTERVAL = 1.0  # seconds between two lines about undecodable images


class PreprocessStep:
    """The model `preprocess`."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        settings = Settings.parse({key: value["string_value"] for key, value in config["parameters"].items()})
        # {224: "pixels"}, or {224: "pixels_224", 336: "pixels_336"}
        outputs = [output for output in config["output"] if output["name"] != "status"]
        self.tensor_names = {int(output["dims"][0]): output["name"] for output in outputs}
        self.step = args["model_name"]
        self.events = Events(pb_utils, self.step)
        self.pace = Pace(_LOG_INTERVAL)
        self.metrics = Metrics(pb_utils)
        for outcome in ("decoded", "rejected"):  # they appear before the first image
            self.metrics.add(IMAGES, 0, outcome=outcome)
        for kind in ErrorKind:
            self.metrics.add(DECODE_ERRORS, 0, kind=kind.value)
        try:
            check_pixels(settings.pixels, settings.pixels_made_by, settings.scaled_decoding)
        except OtherPixelsError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        # This process is ours alone. PIL's own check of sizes sees some images before ours does; what it warns about,
        # such as metadata that it cannot read, would be remembered for ever.
        Image.MAX_IMAGE_PIXELS = settings.limits.max_pixels
        warnings.filterwarnings("ignore", module="PIL")
        self.check = ParameterCheck(partial(ask, pb_utils))
        self.decoder = Decoder(settings, self.tensor_names)
        self.decoder.warm_up()
        self.batches = DeferredBatches(pb_utils, self.step, self.metrics, self._responses)

    def execute(self, requests: list[Any]) -> list[None]:
        return self.batches.take(requests)

    def finalize(self) -> None:
        self.batches.close()
        self.decoder.close()

    def _responses(self, requests: Sequence[Any]) -> list[Any]:
        admitted = [self._admit(request) for request in requests]
        batches = [batch for batch in admitted if isinstance(batch, Batch)]
        self.decoder.decode(batches)
        rejections = [each for batch in batches if not batch.failure for each in batch.rejections]
        kinds = Counter(each.kind for each in rejections if each)
        self._count(len(rejections) - kinds.total(), kinds)
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
            return failure(pb_utils, self.step, request, error)

    def _respond(self, request: Any, batch: Batch) -> Any:
        if batch.failure:
            return failure(pb_utils, self.step, request, batch.failure)
        if any(batch.rejections):
            self._log_rejected(request, batch)
        try:
            status = np.array([[each.message if each else ""] for each in batch.rejections], np.object_)  # (N, 1)
            tensors = [pb_utils.Tensor(name, batch.pixels[size]) for size, name in self.tensor_names.items()]
            return pb_utils.InferenceResponse([*tensors, pb_utils.Tensor("status", status)])
        except Exception as error:
            return failure(pb_utils, self.step, request, error)

    def _count(self, decoded: int, kinds: Counter[ErrorKind]) -> None:
        for outcome, count in (("decoded", decoded), ("rejected", kinds.total())):
            if count:
                self.metrics.add(IMAGES, count, outcome=outcome)
        for kind, count in kinds.items():
            self.metrics.add(DECODE_ERRORS, count, kind=kind.value)

    def _log_rejected(self, request: Any, batch: Batch) -> None:
        unlogged = self.pace.admit()
        if unlogged is None:
            return
        rejected = {row: each for row, each in enumerate(batch.rejections) if each}
        first = min(rejected)
        self.events.info(
            "images_rejected",
            request_id=request.request_id(),
            kinds=Counter(each.kind.value for each in rejected.values()),
            first={"row": first, "error": rejected[first].message},
            requests_not_logged=unlogged,
        )
