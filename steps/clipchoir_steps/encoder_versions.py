"""Whether the image encoders beside `ensembling` are those that its label sets were embedded by."""

import json
from collections.abc import Mapping
from pathlib import Path


def mismatch(repository: Path, fingerprints: Mapping[str, str]) -> str | None:
    """What is wrong with the versions of the encoders that Triton takes, or None.

    Only where they can be seen: Triton loads a model from object storage without its neighbours, and a `version_policy`
    chooses other versions than the newest.

    Args:
        repository: folder of all models.
        fingerprints: of the encoders that are needed, by name.
    """
    for encoder, needed in fingerprints.items():
        model = repository / encoder
        try:
            numbers = [int(path.name) for path in model.iterdir() if path.name.isdecimal()]
            if not numbers or "version_policy" in (model / "config.pbtxt").read_text(encoding="utf-8"):
                continue
            manifest = (model / str(max(numbers)) / "manifest.json").read_text(encoding="utf-8")
            found = json.loads(manifest).get("fingerprint", needed)
        except (OSError, ValueError, AttributeError):
            continue
        if found != needed:
            return (
                f"{encoder}/{max(numbers)} is of the checkpoint {str(found)[:12]}, and the label sets here were "
                f"embedded by {needed[:12]}: serve versions of one build (clipchoir-export inspect lists them), or "
                "build the repository again"
            )
    return None
