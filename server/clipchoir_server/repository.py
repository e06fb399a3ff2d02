"""What the launcher reads of a model repository before it serves it."""

import shutil
from pathlib import Path

from clipchoir_server.errors import ServerError
from clipchoir_steps.layout import (
    CONFIG,
    ZERO_SHOT,
    RepositoryError,
    check_format,
    config_parameters,
    is_repository,
    read_config,
)

STEP_SHARED_MEMORY = 64 << 20  # bytes each Python step starts with: a batch of 64 images and its copies
SHM = Path("/dev/shm")  # noqa: S108


def check_repository(repository: Path, config_name: str | None) -> None:
    """Check that a folder can be served here.

    Args:
        repository: the folder.
        config_name: the variant of the models' configs that is wanted.

    Raises:
        ServerError: it is no repository, one of another format, has no such variant, or /dev/shm is too small for it.
    """
    if not is_repository(repository):
        raise ServerError(f"{repository} is not a clipchoir repository; build one with: clipchoir-export build demo")
    try:
        check_format(repository)
    except RepositoryError as error:
        raise ServerError(str(error)) from error
    variants = sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})
    if config_name is not None and config_name not in variants:
        raise ServerError(
            f"no model of {repository} has a configs/{config_name}.pbtxt; there is {', '.join(variants) or 'none'}"
        )
    models = len(list(repository.glob(f"*/{CONFIG}"))) - 1  # `zero_shot` has no process
    needed = 2 * models * STEP_SHARED_MEMORY  # Triton may start two processes for a model
    free = shutil.disk_usage(SHM).free
    if free < needed:
        raise ServerError(
            f"{SHM} has {free >> 20} MiB free, the repository's steps need {needed >> 20} MiB to exchange tensors; "
            f"enlarge it (in a container: --shm-size={-(-needed >> 30)}g)"
        )


def thread_defaults(repository: Path, cores: int) -> dict[str, str]:
    """Threads of steps, each of which believes to have all cores, where the user's environment does not say otherwise.

    A large batch keeps all cores busy part by part. Threads within a part are for single images on idle servers, where
    the encoders run side by side.
    """
    try:
        encoders = len(config_parameters(read_config(repository / ZERO_SHOT / CONFIG))["encoders"].split(","))
    except (RepositoryError, KeyError):  # Triton says it better
        encoders = 1
    return {"CLIPCHOIR_SESSION_THREADS": str(max(1, cores // encoders)), "OPENBLAS_NUM_THREADS": "1"}
