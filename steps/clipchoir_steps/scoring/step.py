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

from clipchoir_steps.deferred import Later, send
from clipchoir_steps.encoder_versions import mismatch
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.label_sets.resolver import (
    MEMORY,
    Found,
    Lookup,
    NoTextEncodersError,
    TooManyLabelSetsError,
    UnknownLabelSetError,
)
from clipchoir_steps.label_sets.spec import LabelSetError, Limits
from clipchoir_steps.label_sets.store import AdHocLabelSets, NamedLabelSets, cache_folder
from clipchoir_steps.label_sets.text_encoder import PromptEmbedder
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.metrics import AD_HOC, Metrics
from clipchoir_steps.scoring.formula import Scores, score
from clipchoir_steps.scoring.options import OptionError, Options

_CODES = {  # names: Triton adds its part to `pb_utils` after this module is imported
    OptionError: "INVALID_ARG",
    LabelSetError: "INVALID_ARG",
    UnknownLabelSetError: "NOT_FOUND",
    NoTextEncodersError: "UNSUPPORTED",
    TooManyLabelSetsError: "UNAVAILABLE",
}

Answer = Callable[[Found], Any]  # -> pb_utils.InferenceResponse


class TextEncoderError(Exception):
    """A text encoder failed."""


class EnsemblingStep:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.encoders = parameters["encoders"].split(",")
        fingerprints, self.embedding_ids = (
            {encoder: _of_version(parameters, f"{encoder}_{what}", args["model_version"]) for encoder in self.encoders}
            for what in ("fingerprint", "embedding_id")
        )
        self.defaults = Options(
            label_set=parameters["default_label_set"],
            weights=tuple(float(weight) for weight in parameters["weights"].split(",")),
            logit_scale=float(parameters["logit_scale"]),
            drop_below=float(parameters["drop_below"]),
            aggregate=parameters["aggregate"],
        )
        self.metrics = Metrics(pb_utils)
        self.named = NamedLabelSets(folder / "label_sets", fingerprints, self.defaults.label_set, _warn)
        if problem := mismatch(folder.parent.parent, fingerprints):
            raise pb_utils.TritonModelException(problem)
        self.ad_hoc = AdHocLabelSets(
            fingerprints,
            cache_folder(os.environ),
            memory_bytes=int(parameters["label_set_memory_bytes"]),
            disk_bytes=int(parameters["label_set_disk_bytes"]),
            log=_warn,
        )
        models = dict(part.split("=") for part in parameters["text_encoders"].split(",") if part)
        tokenizer = PromptTokenizer(folder / "tokenizer.json")
        self.lookup = Lookup(
            self.named,
            self.ad_hoc,
            PromptEmbedder(models, fingerprints, tokenizer, _encode) if models else None,
            Limits(*(int(parameters[f"label_set_max_{name}"]) for name in ("classes", "prompts", "spec_bytes"))),
            batch=config["max_batch_size"],
            count=self._count,
        )
        self.metrics.held(0, self.ad_hoc.bytes_in_files)
        self._warm_up(config["max_batch_size"])
        self.later = Later(pb_utils, config["name"], self._answers)

    def execute(self, requests: list[Any]) -> list[None]:
        return self.later.take(requests)

    def finalize(self) -> None:
        self.later.close()
        self.lookup.close()

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _warm_up(self, batch: int) -> None:
        """Score one batch of the largest size: the arrays and threads that the first user would wait for."""
        label_set = self.named.get(self.defaults.label_set)
        assert label_set is not None  # noqa: S101  NamedLabelSets has seen to it
        images = [np.repeat(label_set.embeddings[encoder][:1], batch, axis=0) for encoder in self.encoders]  # (N, D)
        self._score(images, label_set, self.defaults)

    def _score(self, images: list[np.ndarray], label_set: EmbeddedLabelSet, options: Options) -> Scores:
        texts = [label_set.texts(encoder, options.aggregate) for encoder in self.encoders]
        return score(
            images,
            [embeddings for embeddings, _ in texts],
            texts[0][1],
            options.weights,
            options.logit_scale,
            options.drop_below,
        )

    def _answer(self, request: Any) -> Any:
        """A response, or None: it comes when the label set is there."""
        try:
            options, answer, wait = self._understood(request)
            label_set = self.lookup.find(options.label_set)
            if label_set is not None:
                self.metrics.found(MEMORY)
                return _answered(request, answer, label_set)
            sender = request.get_response_sender()
        except Exception as error:  # it must not fail the other requests of this batch
            return _failure(request, error)

        def receive(found: Found, error: Exception | None) -> None:
            response = _failure(request, error) if error else _answered(request, answer, found)
            send(pb_utils, "ensembling", sender, response)

        try:
            self.lookup.find_later(options.label_set, options.spec, receive, wait)
        except Exception as error:
            send(pb_utils, "ensembling", sender, _failure(request, error))
        return None

    def _understood(self, request: Any) -> tuple[Options, Answer, bool]:
        """What a request wants: how to score, what to make of the label set, and whether that has to be there."""
        query = pb_utils.get_input_tensor_by_name(request, "query")
        if query is None:
            options = self.defaults.changed_by(json.loads(request.parameters() or "{}"), self.encoders)
            return options, lambda found: self._scored(request, options, found), True
        content = json.loads(query.as_numpy().flat[0])
        if "show" in content:
            options = self.defaults.changed_by({"label_set": content["show"]}, self.encoders)
            return options, lambda found: _as_json(found.description()), True
        if "inspect" in content:
            options = self.defaults.changed_by({"label_set_spec": content["inspect"]}, self.encoders)
            inspected = self.lookup.inspect(options.label_set, options.spec or b"")
            return self.defaults, lambda _: _as_json(inspected), True
        if "check" in content:
            options = self.defaults.changed_by(content["check"], self.encoders)
            return options, lambda _: _as_json({}), False
        return self.defaults, lambda _: _as_json(self._listed()), True

    def _scored(self, request: Any, options: Options, label_set: EmbeddedLabelSet) -> Any:
        embeddings = {encoder: _needed(request, encoder) for encoder in self.encoders}  # (N, D) each
        errors = _input(request, "status")
        if errors is None:  # embeddings that were stored
            errors = np.full((len(embeddings[self.encoders[0]]), 1), b"", np.object_)
        errors = _with_unusable(errors, embeddings)
        scores = self._score(list(embeddings.values()), label_set, options)
        classes = np.array(label_set.classes, np.object_)
        outputs = {
            "label": classes[scores.best][:, None],  # (N, 1)
            "score": scores.ensemble.max(axis=1, keepdims=True),  # (N, 1)
            "scores": scores.ensemble,  # (N, C)
            "encoder_scores": scores.encoders,  # (N, E, C)
            "error": errors,
            **{f"{encoder}_embedding": embedding for encoder, embedding in embeddings.items()},
        }
        failed = errors[:, 0] != b""
        if failed.any():
            for name, array in outputs.items():
                if array.dtype == np.float32:
                    outputs[name] = np.where(failed.reshape(-1, *[1] * (array.ndim - 1)), np.float32(np.nan), array)
            outputs["label"][failed] = ""
        wanted = request.requested_output_names()
        if "classes" in wanted:  # costly for many classes: made only on demand
            outputs["classes"] = np.tile(classes, (len(errors), 1))  # (N, C)
        agreed = (scores.encoders.argmax(axis=2) == scores.best[:, None]).all(axis=1)  # (N,)
        name = options.label_set if self.named.get(options.label_set) else AD_HOC
        self.metrics.predicted(name, label_set.classes, scores.best[~failed], agreed[~failed])
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in outputs.items() if name in wanted]
        )

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

    def _count(self, where: str, embedded: int) -> None:
        self.metrics.found(where, embedded)
        self.metrics.held(self.ad_hoc.bytes_in_memory, self.ad_hoc.bytes_in_files)


def _encode(model: str, tokens: np.ndarray) -> np.ndarray:
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=["embedding"],
        inputs=[pb_utils.Tensor("tokens", tokens)],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise TextEncoderError(f"{model}: {response.error().message()}")
    return pb_utils.get_output_tensor_by_name(response, "embedding").as_numpy()


def _of_version(parameters: dict[str, str], name: str, version: str) -> str:
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


def _with_unusable(errors: np.ndarray, embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Why each row has no scores, (N, 1): also where an encoder overflowed, or what was stored is of a failed image."""
    for encoder, rows in embeddings.items():
        unusable = ~np.isfinite(rows).all(axis=1) & (errors[:, 0] == b"")  # (N,)
        if unusable.any():
            errors = errors.copy()
            errors[unusable] = f"the embedding by {encoder} is not finite".encode()
    return errors


def _as_json(content: object) -> Any:
    text = json.dumps(content, ensure_ascii=False)
    return pb_utils.InferenceResponse([pb_utils.Tensor("answer", np.array([[text]], np.object_))])


def _answered(request: Any, answer: Answer, found: Found) -> Any:
    try:
        return answer(found)
    except Exception as error:
        return _failure(request, error)


def _failure(request: Any, error: Exception) -> Any:
    """An error, or for a query an answer that has it: a step that asks another loses an error's code."""
    code = _CODES.get(type(error), "INTERNAL")
    if code == "INTERNAL":
        event = {"event": "request_failed", "step": "ensembling", "request_id": request.request_id()}
        pb_utils.Logger.log_error(json.dumps(event | {"error": f"{type(error).__name__}: {error}"}))
    if pb_utils.get_input_tensor_by_name(request, "query") is not None:
        return _as_json({"error": str(error), "code": code})
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), getattr(pb_utils.TritonError, code)))


def _warn(message: str) -> None:
    pb_utils.Logger.log_warn(json.dumps({"event": "label_sets_warning", "step": "ensembling", "warning": message}))
