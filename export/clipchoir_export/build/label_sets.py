"""Embeds a label set into a repository ahead of time, by the repository's own text encoders."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from clipchoir_export.build.encoder import digest
from clipchoir_export.errors import RepositoryError
from clipchoir_export.locking import exclusively
from clipchoir_export.text import BATCH
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet, LabelSetFileError
from clipchoir_steps.label_sets.spec import LabelSet
from clipchoir_steps.label_sets.text_encoder import PromptEmbedder
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.layout import (
    ENSEMBLING,
    MODEL,
    TOKENIZER,
    check_format,
    label_set_file,
    newest,
    read_manifest,
    text_model,
)


def embed_label_set(repository: Path, label_set: LabelSet, progress: Progress) -> tuple[Path, bool]:
    """Embed a label set and put it beside the others of the newest `ensembling`, under its name.

    A server that is running takes it up. What was embedded before an interruption is not embedded again.

    Returns:
        The file, and whether it had to be written.

    Raises:
        RepositoryError: this is no repository, or one without text encoders, or they belong to another build, or
            another run embeds this very set.
        OSError: the file cannot be written.
    """
    ensembling = newest(repository / ENSEMBLING)
    encoders = read_manifest(ensembling).get("encoders")
    if ensembling is None or not encoders:
        raise RepositoryError(f"{repository} is no clipchoir repository: it has no {ENSEMBLING} with a manifest")
    check_format(repository)
    fingerprints = {name: str(each["fingerprint"]) for name, each in encoders.items()}
    graphs = {name: _graph(repository, name, fingerprint) for name, fingerprint in fingerprints.items()}
    file = label_set_file(ensembling, label_set.name)
    if _holds(file, label_set, fingerprints):
        return file, False
    file.parent.mkdir(exist_ok=True)
    lock = file.with_name(f".{file.stem}.lock")
    with exclusively(lock, f"run that embeds {label_set.name} into {repository}"):
        _embed(label_set, graphs, fingerprints, ensembling, file, progress)
        lock.unlink()
    return file, True


def _embed(
    label_set: LabelSet,
    graphs: Mapping[str, Path],
    fingerprints: dict[str, str],
    ensembling: Path,
    file: Path,
    progress: Progress,
) -> None:
    tokenizer = PromptTokenizer(ensembling / TOKENIZER)
    tokens, _ = tokenizer.distinct(label_set.prompts())  # what each text encoder is given
    total, given = len(tokens), hashlib.sha256(tokens.tobytes()).hexdigest()
    runs = {
        text_model(name): _Run(
            graph,
            file.with_name(f".{file.stem}.{name}.{digest([given, fingerprints[name]])[:12]}.part"),
            total,
            progress,
            progress.add_task(f"{text_model(name)}: embedding", total=total, unit="prompts"),
        )
        for name, graph in graphs.items()
    }
    embedder = PromptEmbedder(
        {name: text_model(name) for name in graphs},
        fingerprints,
        tokenizer,
        lambda model, tokens: runs[model].encode(tokens),
    )
    embedder.embed(label_set, BATCH).save(file)
    for run in runs.values():
        run.part.unlink(missing_ok=True)


def _graph(repository: Path, encoder: str, fingerprint: str) -> Path:
    version = newest(repository / text_model(encoder))
    if version is None:
        raise RepositoryError(
            f"{repository} has no {text_model(encoder)}; make the text encoders with: "
            f"clipchoir-export build ENSEMBLE --repository {repository} --text-encoders"
        )
    if read_manifest(version).get("fingerprint") != fingerprint:
        raise RepositoryError(f"{version} belongs to another build than {ENSEMBLING}; build the repository again")
    return version / MODEL


def _holds(file: Path, label_set: LabelSet, fingerprints: dict[str, str]) -> bool:
    try:
        stored = EmbeddedLabelSet.load(file, fingerprints)
    except LabelSetFileError:
        return False
    return (
        stored.classes == label_set.classes
        and list(stored.prompts) == label_set.prompts()
        and stored.prompt_counts.tolist() == label_set.prompt_counts()
    )


@dataclass
class _Run:
    """One text encoder over all batches in turn. Rows go to a file as they come, where the next run finds them."""

    graph: Path
    part: Path
    total: int  # rows
    progress: Progress
    task: TaskID
    done: int = 0  # rows handed out
    _session: onnxruntime.InferenceSession | None = None

    def encode(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """The next batch: int64 (N, 77) -> (N, D), rows of length 1."""
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            present = onnxruntime.get_available_providers()
            providers = [each for each in ("CUDAExecutionProvider", "CPUExecutionProvider") if each in present]
            self._session = onnxruntime.InferenceSession(str(self.graph), options, providers=providers)
        dim = int(self._session.get_outputs()[0].shape[1])
        position, size = self.done * dim * 4, len(tokens) * dim * 4
        with self.part.open("ab") as file:
            if file.tell() >= position + size:
                rows = np.fromfile(self.part, np.float32, len(tokens) * dim, offset=position).reshape(-1, dim)
            else:
                file.truncate(position)  # half a batch, where the last run was killed
                rows = self._session.run(["embedding"], {"tokens": tokens})[0]
                file.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self.done += len(tokens)
        if self.done == self.total:  # the next text encoder needs the memory
            self._session = None
        self.progress.advance(self.task, len(tokens))
        return rows
