"""The command `clipchoir-export`."""

import os
import sys

from clipchoir_steps.blas import use_fast_kernel


def main() -> None:
    """Run the command; without the `export` extra, say how to install it."""
    # Weights are large, read once and dropped: most of the time would go to handing out memory in pages of 4 KB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    use_fast_kernel()
    try:
        from clipchoir_export.cli import app

        app(prog_name="clipchoir-export")
    except ModuleNotFoundError as error:
        if type(error) is not ModuleNotFoundError or (error.name or "").startswith("clipchoir_"):
            raise
        sys.exit(f"clipchoir-export needs {error.name}: pip install '.[export,cpu]' (or [export,gpu] for a GPU)")


if __name__ == "__main__":
    main()
