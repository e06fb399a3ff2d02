"""Checkpoints from model hubs: whole repositories by id, and single published files.

Files come through `huggingface_hub` into its cache: HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean here what
they mean there. Only weights and configs are downloaded, never code.
"""

import errno
import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, ResolvedRevision, constants, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from clipchoir_export.checkpoints.files import INDEX_SUFFIX, WEIGHT_FILES, shard_names
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import PublishedFile

_FILE_SUFFIXES = (".toml", ".safetensors", ".bin", ".pt", ".pth")
_NAME = r"\b[\w.-]{1,96}\b"
_HUB_ID = re.compile(rf"(?!.*\.\.)(?![^@]*--)({_NAME}/{_NAME})(?<!\.git)(?:@(\w[\w./-]*))?", re.ASCII)
_GO_ONLINE = "fetch it once while connected, without offline mode (HF_HUB_OFFLINE)"


def is_hub_id(text: str) -> bool:
    """Whether a text reads as `org/name` or `org/name@revision`; a relative path of two parts does, too."""
    match = _HUB_ID.fullmatch(text)
    return match is not None and not match[1].endswith(_FILE_SUFFIXES)


def fetch_checkpoint(hub_id: str, offline: bool = False) -> Path:
    """Folder with the configs of a repository and its weights in one format, at one commit; from the cache if offline.

    Raises:
        CheckpointError: this is no hub id, the repository or its weights cannot be had, or they are not in the cache.
    """
    with _found(hub_id, offline) as snapshot:
        weights = snapshot.weights()
        snapshot.fetch_configs()  # before the weights, so that those imply these
        file = snapshot.fetch(weights)
        for shard in snapshot.shards(file) if weights.endswith(INDEX_SUFFIX) else []:
            snapshot.fetch(shard)
        return file.parent


def fetch_configs(hub_id: str, offline: bool = False) -> Path:
    """Folder with the configs of a repository that has weights, without these; from the cache if offline.

    Raises:
        CheckpointError: this is no hub id, or the repository or its configs cannot be had, or it holds neither.
    """
    with _found(hub_id, offline) as snapshot:
        snapshot.weights()  # a repository without any is no checkpoint
        configs = snapshot.fetch_configs()
        if not configs:
            raise CheckpointError(f'{snapshot} holds no config{snapshot.remedy()}; name its "architecture"')
        return configs[0].parent


def fetch_file(published: PublishedFile, offline: bool = False) -> Path:
    """A published weight file; from the cache if offline.

    Raises:
        CheckpointError: the file cannot be had, or it is not in the cache.
    """
    with _explained(published.repository):
        snapshot = _Snapshot.find(published.repository, None, offline)
        for name in published.names:
            if name in snapshot.names:
                return snapshot.fetch(name)
        raise CheckpointError(f"{snapshot} holds no {' or '.join(published.names)}{snapshot.remedy()}")


@dataclass(frozen=True)
class _Snapshot:
    """A repository at one commit and the files at its top; offline, those that are in the cache."""

    repository: str
    commit: ResolvedRevision
    names: list[str]
    offline: bool

    @classmethod
    def find(cls, repository: str, revision: str | None, offline: bool) -> "_Snapshot":
        api, offline = HfApi(), offline or is_offline_mode()
        commit = api.resolve_revision(repository, revision=revision, local_files_only=offline)
        if offline:
            folder = snapshot_download(repository, revision=commit, allow_patterns=[], local_files_only=True)
            names = [path.name for path in Path(folder).iterdir() if path.is_file()]
        else:
            files = api.model_info(repository, revision=commit.resolved).siblings or []
            names = [file.rfilename for file in files if "/" not in file.rfilename]
        return cls(repository, commit, names, offline)

    def __str__(self) -> str:
        return f"{self.repository} (commit {self.commit.resolved[:8]})"

    def remedy(self) -> str:
        return f" in the cache ({constants.HF_HUB_CACHE}); {_GO_ONLINE}" if self.offline else ""

    def fetch(self, name: str) -> Path:
        return Path(hf_hub_download(self.repository, name, revision=self.commit, local_files_only=self.offline))

    def fetch_configs(self) -> list[Path]:
        return [self.fetch(name) for name in fnmatch.filter(self.names, "*config.json")]

    def weights(self) -> str:
        for pattern in WEIGHT_FILES:
            found = sorted(fnmatch.filter(self.names, pattern))
            if len(found) > 1:
                raise CheckpointError(
                    f"{self} holds several weight files and no index: {', '.join(found)}; download the one to use, "
                    "and name its path"
                )
            if found:
                return found[0]
        raise CheckpointError(f"{self} holds no weights (.safetensors, .bin, .pt or .pth){self.remedy()}")

    def shards(self, index: Path) -> list[str]:
        names = shard_names(index)
        for name in names:
            if name not in self.names:
                raise CheckpointError(f"{self} holds no {name}, a shard that {index.name} names{self.remedy()}")
        return names


@contextmanager
def _found(hub_id: str, offline: bool) -> Iterator[_Snapshot]:
    if not is_hub_id(hub_id):
        raise CheckpointError(f'"{hub_id}" is not the id of a hub repository: "org/name" or "org/name@revision"')
    repository, _, revision = hub_id.partition("@")
    with _explained(hub_id):
        yield _Snapshot.find(repository, revision or None, offline)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    # RuntimeError: what xet, through which hubs send large files, raises.
    except (OSError, httpx2.HTTPError, RevisionResolutionError, RuntimeError) as error:
        raise CheckpointError(f"{name}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    if isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)):
        if error.__cause__ is None:
            return f"is not, or not wholly, in the cache ({constants.HF_HUB_CACHE}); {_GO_ONLINE}"
        return _explain(error.__cause__)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError) or (status in (401, 403) and not isinstance(error, RepositoryNotFoundError)):
        return "access is refused: accept the licence on the model's page, then set HF_TOKEN to a token of that account"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private: check the name, or set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision: name a branch, a tag or a whole commit hash"
    if status is not None:
        return f"the server answered with status {status}: try again later"
    if isinstance(error, httpx2.HTTPError):
        return f"no connection, or it broke off ({error}): try again, or use the cache alone with HF_HUB_OFFLINE=1"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: make room in {constants.HF_HUB_CACHE}, or set HF_HOME to a folder on a larger disk"
    return f"the download failed: {error}; try again"
