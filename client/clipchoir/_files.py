"""Finding image files."""

from collections.abc import Sequence
from pathlib import Path

from natsort import natsorted, ns

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and every image file below the given folders; each folder in natural order.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            images = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
            if not images:
                raise FileNotFoundError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
            found += natsorted(images, alg=ns.PATH)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist")
    return found
