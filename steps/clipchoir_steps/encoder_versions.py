"""Whether the image encoders beside `ensembling` are those that its label sets were embedded by."""

from collections.abc import Mapping
from pathlib import Path

from clipchoir_steps.layout import CONFIG, RepositoryError, newest, read_config, read_manifest


def mismatch(repository: Path, fingerprints: Mapping[str, str]) -> str | None:
    """What is wrong with the versions of the encoders that Triton takes, or None.

    Only where they can be seen: Triton loads a model from object storage without its neighbours, and a `version_policy`
    chooses other versions than the newest.

    Args:
        repository: folder of all models.
        fingerprints: of the encoders that are needed, by name.
    """
    for encoder, needed in fingerprints.items():
        try:
            version = newest(repository / encoder)
            if version is None or read_config(repository / encoder / CONFIG).HasField("version_policy"):
                continue
            found = read_manifest(version).get("fingerprint", needed)
        except (RepositoryError, OSError):
            continue
        if found != needed:
            return (
                f"{encoder}/{version.name} is of the checkpoint {str(found)[:12]}, and the label sets here were "
                f"embedded by {needed[:12]}: serve versions of one build (clipchoir-export inspect lists them), or "
                "build the repository again"
            )
    return None
