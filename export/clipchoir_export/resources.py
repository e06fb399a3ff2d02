"""Files that travel with the package: in a wheel below `clipchoir_export`, in a checkout where git has them."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]
# The same pairs stand in pyproject.toml (`package-dir`), which puts them into the wheel.
_IN_CHECKOUT = {
    "demo_checkpoints": "demo/checkpoints",
    "ensembles": "export/ensembles",
    "label_sets": "export/label_sets",
    "model_repository": "model_repository",
}


def resource(name: str) -> Path:
    """Folder of `demo_checkpoints`, `ensembles`, `label_sets` or the `model_repository`'s source."""
    in_wheel = _PACKAGE / name
    return in_wheel if in_wheel.is_dir() else _CHECKOUT / _IN_CHECKOUT[name]
