"""The command `clipchoir-server`."""

import sys

_MODULES = {
    "pytriton": "server",
    "onnxruntime": "cpu",
    "PIL": "server",
    "psutil": "server",
    "safetensors": "server",
    "ftfy": "server",
}


def main() -> None:
    """Run the command; without the extras it needs, say how to install them."""
    from importlib.util import find_spec

    for module, extra in _MODULES.items():
        if find_spec(module) is None:
            sys.exit(f"clipchoir-server needs {module} (extra {extra}): pip install '.[server,cpu]'")
    from clipchoir_server.cli import app

    app(prog_name="clipchoir-server")


if __name__ == "__main__":
    main()
