"""Triton's view of the ensembling step: every encoder's embedding of an image -> the public outputs.

Every public output of `zero_shot` is made here, under a name that no other step consumes: Triton prunes an ensemble
by the outputs that a request asks for. A request with the input `query` asks about label sets instead.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from clipchoir_steps import bls, layout, metrics
from clipchoir_steps.deferred import DeferredBatches, failure, send
from clipchoir_steps.encoder_versions import mismatch
from clipchoir_steps.events import Events
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.label_sets.query import (
    CheckParameters,
    InspectSpec,
    ListSets,
    ShowSet,
    answer,
    decode,
    refusal,
)
from clipchoir_steps.label_sets.resolver import (
    MEMORY,
    NoTextEncodersError,
    Resolver,
    TooManyLabelSetsError,
    UnknownLabelSetError,
)
from clipchoir_steps.label_sets.spec import LabelSetError, Limits
from clipchoir_steps.label_sets.store import AdHocLabelSets, NamedLabelSets, cache_folder
from clipchoir_steps.label_sets.text_encoder import PromptEmbedder
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.scoring.options import LABEL_SET, LABEL_SET_SPEC, OptionError, Options, Scoring
from clipchoir_steps.scoring.outputs import Scored, make_outputs, public_outputs, score_batch

_CODES = {  # names: Triton adds its part to `pb_utils` after this module is imported
    OptionError: "INVALID_ARG",
    LabelSetError: "INVALID_ARG",
    UnknownLabelSetError: "NOT_FOUND",
    NoTextEncodersError: "UNSUPPORTED",
    TooManyLabelSetsError: "UNAVAILABLE",
}
_AD_HOC = "ad-hoc"

Respond = Callable[[EmbeddedLabelSet], Any]  # -> pb_utils.InferenceResponse


class EnsemblingStep:
    """The model `ensembling`."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.encoders = parameters["encoders"].split(",")
        dims = {each["name"]: int(each["dims"][0]) for each in config["input"] if each["name"] in self.encoders}
        self.outputs = public_outputs({encoder: dims[encoder] for encoder in self.encoders})
        fingerprints, self.embedding_ids = (
            {encoder: _of_version(parameters, f"{encoder}_{what}", args["model_version"]) for encoder in self.encoders}
            for what in ("fingerprint", "embedding_id")
        )
        self.defaults = Options(parameters["default_label_set"], Scoring.of(parameters, self.encoders))
        self.metrics = metrics.Metrics(pb_utils)
        self.events = Events(pb_utils, layout.ENSEMBLING)
        self.named = NamedLabelSets(layout.label_sets_folder(folder), fingerprints, self.defaults.label_set, self._warn)
        if problem := mismatch(folder.parent.parent, fingerprints):
            raise pb_utils.TritonModelException(problem)
        self.ad_hoc = AdHocLabelSets(
            fingerprints,
            cache_folder(os.environ),
            memory_bytes=int(parameters["label_set_memory_bytes"]),
            disk_bytes=int(parameters["label_set_disk_bytes"]),
            log=self._warn,
        )
        models = dict(part.split("=") for part in parameters["text_encoders"].split(",") if part)
        tokenizer = PromptTokenizer(folder / layout.TOKENIZER)
        self.resolver = Resolver(
            self.named,
            self.ad_hoc,
            PromptEmbedder(models, fingerprints, tokenizer, _encode) if models else None,
            Limits(*(int(parameters[f"label_set_max_{name}"]) for name in ("classes", "prompts", "spec_bytes"))),
            batch=config["max_batch_size"],
            count=self._count_found,
        )
        self.metrics.add(metrics.PROMPTS_EMBEDDED, 0)
        self._show_sizes()
        self._warm_up(config["max_batch_size"])
        self.batches = DeferredBatches(pb_utils, layout.ENSEMBLING, self.metrics, self._responses)

    def execute(self, requests: list[Any]) -> list[None]:
        return self.batches.take(requests)

    def finalize(self) -> None:
        self.batches.close()
        self.resolver.close()

    def _responses(self, requests: Sequence[Any]) -> list[Any]:
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        """A response, or None: it comes when the label set is there."""
        try:
            query = pb_utils.get_input_tensor_by_name(request, "query")
            if query is None:
                options = self.defaults.changed_by(json.loads(request.parameters() or "{}"), self.encoders)
                return self._with_label_set(request, options, lambda found: self._scored(request, options, found))
            return self._answer(request, query.as_numpy().flat[0])
        except Exception as error:  # it must not fail the other requests of this batch
            return self._failure(request, error)

    def _answer(self, request: Any, text: bytes) -> Any:
        match decode(text):
            case ListSets():
                return _answered(self._listed())
            case ShowSet(name):
                options = self.defaults.changed_by({LABEL_SET: name}, self.encoders)
                return self._with_label_set(request, options, lambda found: _answered(found.description()))
            case InspectSpec(spec):
                options = self.defaults.changed_by({LABEL_SET_SPEC: spec}, self.encoders)
                return _answered(self.resolver.inspect(options.label_set, options.spec or b""))
            case CheckParameters(parameters):
                options = self.defaults.changed_by(parameters, self.encoders)
                return self._once_certain(request, options)

    def _with_label_set(self, request: Any, options: Options, respond: Respond) -> Any:
        """The response, or None where it is sent later, once the label set is there."""
        found = self.resolver.find(options.label_set)
        if found is not None:
            self.metrics.add(metrics.LABEL_SET_REQUESTS, 1, found=MEMORY)
            return respond(found)
        sender = request.get_response_sender()

        def receive(found: EmbeddedLabelSet | None, error: Exception | None) -> None:
            send(pb_utils, layout.ENSEMBLING, request, sender, self._guarded(request, respond, found, error))

        self.resolver.resolve(options.label_set, options.spec, receive)
        return None

    def _once_certain(self, request: Any, options: Options) -> Any:
        """An empty answer, or None where it is sent later, once it is certain that the label set will be there."""
        if self.resolver.find(options.label_set) is not None:
            self.metrics.add(metrics.LABEL_SET_REQUESTS, 1, found=MEMORY)
            return _answered({})
        sender = request.get_response_sender()

        def receive(_: EmbeddedLabelSet | None, error: Exception | None) -> None:
            response = self._failure(request, error) if error else _answered({})
            send(pb_utils, layout.ENSEMBLING, request, sender, response)

        self.resolver.expect(options.label_set, options.spec, receive)
        return None

    def _guarded(self, request: Any, respond: Respond, found: EmbeddedLabelSet | None, error: Exception | None) -> Any:
        try:
            if error is not None or found is None:
                raise error or RuntimeError("the label set is not there")
            return respond(found)
        except Exception as problem:
            return self._failure(request, problem)

    def _scored(self, request: Any, options: Options, label_set: EmbeddedLabelSet) -> Any:
        embeddings = {encoder: _needed(request, encoder) for encoder in self.encoders}  # (N, D) each
        scored = score_batch(embeddings, _input(request, "status"), label_set, options.scoring)
        tensors = make_outputs(scored, self.outputs, request.requested_output_names())
        self._count_predictions(options.label_set, scored)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])

    def _warm_up(self, batch: int) -> None:
        """Score one batch of the largest size: the arrays and threads that the first user would wait for."""
        label_set = self.named.get(self.defaults.label_set)
        assert label_set is not None  # noqa: S101  NamedLabelSets has seen to it
        images = {encoder: np.repeat(label_set.embeddings[encoder][:1], batch, axis=0) for encoder in self.encoders}
        score_batch(images, None, label_set, self.defaults.scoring)

    def _listed(self) -> dict[str, object]:
        sets = {name: self.named.get(name) for name in self.named.names()}
        return {
            "default": self.defaults.label_set,
            "embedding_ids": self.embedding_ids,
            "label_sets": {
                name: {"classes": len(each.classes), "prompts": len(each.prompts)}
                for name, each in sets.items()
                if each
            },
        }

    def _count_found(self, where: str, embedded: int) -> None:
        self.metrics.add(metrics.LABEL_SET_REQUESTS, 1, found=where)
        if embedded:
            self.metrics.add(metrics.PROMPTS_EMBEDDED, embedded)
        self._show_sizes()

    def _show_sizes(self) -> None:
        self.metrics.set(metrics.LABEL_SET_BYTES, self.ad_hoc.bytes_in_memory, where="memory")
        self.metrics.set(metrics.LABEL_SET_BYTES, self.ad_hoc.bytes_in_files, where="disk")

    def _count_predictions(self, label_set: str, scored: Scored) -> None:
        """Count the images that have scores; all sets but the named ones count as one, so that no client fills it."""
        best, agreed = scored.best[~scored.failed], int(scored.agreed[~scored.failed].sum())
        if self.named.get(label_set) is None:
            self.metrics.add(metrics.PREDICTIONS, len(best), label_set=_AD_HOC, label="")
        else:
            for index, count in zip(*np.unique(best, return_counts=True), strict=True):
                self.metrics.add(metrics.PREDICTIONS, int(count), label_set=label_set, label=str(scored.classes[index]))
        for answer_, count in (("yes", agreed), ("no", len(best) - agreed)):
            if count:
                self.metrics.add(metrics.AGREEMENT, count, agreed=answer_)

    def _failure(self, request: Any, error: Exception) -> Any:
        """An error, or for a query an answer that has it."""
        code = _CODES.get(type(error), "INTERNAL")
        response = failure(pb_utils, layout.ENSEMBLING, request, error) if code == "INTERNAL" else None
        if pb_utils.get_input_tensor_by_name(request, "query") is not None:
            return _text(refusal(str(error), code))
        if response is None:
            error_code = getattr(pb_utils.TritonError, code)
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), error_code))
        return response

    def _warn(self, message: str) -> None:
        self.events.warn("label_sets_warning", warning=message)


def _encode(model: str, tokens: np.ndarray) -> np.ndarray:
    return bls.call(pb_utils, model, {"tokens": tokens}, "embedding")


def _of_version(parameters: Mapping[str, str], name: str, version: str) -> str:
    """Versions of this model share one config, which has `1=aaa,2=bbb` for what differs."""
    by_version = dict(part.split("=") for part in parameters[name].split(","))
    if version not in by_version:
        raise pb_utils.TritonModelException(
            f"ensembling's config has no {name} of version {version}; build the repository again"
        )
    return by_version[version]


def _input(request: Any, name: str) -> np.ndarray | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _needed(request: Any, name: str) -> np.ndarray:
    array = _input(request, name)
    if array is None:
        raise OptionError(f"the input {name} is missing")
    return array


def _answered(content: object) -> Any:
    return _text(answer(content))


def _text(text: str) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("answer", np.array([[text]], np.object_))])
