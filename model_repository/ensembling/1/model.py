"""Triton's view of the ensembling step: every encoder's embedding of an image -> the public outputs.

Every public output of `zero_shot` is made here, under a name that no other step consumes: Triton prunes an ensemble
by the outputs that a request asks for.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from clipchoir_label_sets import EmbeddedLabelSet, NamedLabelSets, UnknownLabelSetError
from clipchoir_options import OptionError, Options, UnsupportedOptionError
from clipchoir_scoring import score


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.encoders = parameters["encoders"].split(",")
        self.label_sets = NamedLabelSets(
            Path(args["model_repository"]) / args["model_version"] / "label_sets",
            fingerprints={
                encoder: _fingerprint(parameters, encoder, args["model_version"]) for encoder in self.encoders
            },
        )
        self.defaults = Options(
            label_set=parameters["default_label_set"],
            weights=tuple(float(weight) for weight in parameters["weights"].split(",")),
            logit_scale=float(parameters["logit_scale"]),
            drop_below=float(parameters["drop_below"]),
        )
        self.label_sets[self.defaults.label_set]  # refuses to load without it

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            options = self.defaults.changed_by(json.loads(request.parameters() or "{}"), self.encoders)
            label_set = self.label_sets[options.label_set]
            outputs = self._outputs(request, options, label_set)
        except OptionError as error:
            return _failure(error, pb_utils.TritonError.INVALID_ARG)
        except UnknownLabelSetError as error:
            return _failure(error, pb_utils.TritonError.NOT_FOUND)
        except UnsupportedOptionError as error:
            return _failure(error, pb_utils.TritonError.UNSUPPORTED)
        except Exception as error:  # it must not fail the other requests of this batch
            return _failure(error, pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _outputs(self, request: Any, options: Options, label_set: EmbeddedLabelSet) -> dict[str, np.ndarray]:
        errors = _input(request, "status")  # (N, 1) bytes
        embeddings = {encoder: _input(request, encoder) for encoder in self.encoders}  # (N, D) each
        scores = score(
            list(embeddings.values()),
            [label_set.embeddings[encoder] for encoder in self.encoders],
            label_set.prompt_counts,
            options.weights,
            options.logit_scale,
            options.drop_below,
        )
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
        return {name: array for name, array in outputs.items() if name in wanted}


def _fingerprint(parameters: dict[str, str], encoder: str, version: str) -> str:
    """Versions of this model share one config, which has `1=aaa,2=bbb` for the encoder that each belongs to."""
    by_version = dict(part.split("=") for part in parameters[f"{encoder}_fingerprint"].split(","))
    if version not in by_version:
        raise pb_utils.TritonModelException(
            f"ensembling's config has no fingerprint of version {version} for {encoder}; build the repository again"
        )
    return by_version[version]


def _input(request: Any, name: str) -> np.ndarray:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _failure(error: Exception, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
