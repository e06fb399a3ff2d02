"""What `make demo` runs: serve a repository, classify the sample images through the command line, stop."""

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from clipchoir_server.triton import Address, ServerError, serving

SAMPLES = Path(__file__).parent / "samples"
NEXT_STEPS = """
What to try next:
  make serve                                           keep the server up (gRPC 8001, HTTP 8000, metrics 8002), then:
  .venv/bin/clipchoir web                              drop images on a local page
  .venv/bin/clipchoir classify IMAGES                  your own images; a folder works, too
  .venv/bin/clipchoir classify IMAGES --weights 1,0 --json
  .venv/bin/python -m demo.scenes render --count 60 --seed 7 fresh && .venv/bin/clipchoir evaluate fresh
The demo pair knows drawn scenes only. For photographs:
  .venv/bin/clipchoir-export list                      ensembles to build; docs/export.md says how to make your own
"""


def main() -> int:
    """Returns an exit code."""
    repository = Path(sys.argv[1])
    clipchoir = Path(sys.executable).with_name("clipchoir")
    console = Console(highlight=False)
    console.print(f"[bold]Starting Triton on {repository}[/]")
    try:
        with serving(repository, Address.choose()) as triton:
            url = ("--url", triton.address.grpc)
            first_of_each = sorted(SAMPLES.glob("*/*_00.jpg"))
            console.print("\n[bold]One image of each class[/] (clipchoir classify)")
            subprocess.run([clipchoir, "classify", *first_of_each, *url], check=True)
            console.print("\n[bold]All sample images[/] (clipchoir evaluate)")
            subprocess.run([clipchoir, "evaluate", SAMPLES, *url], check=True)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 130
    console.print(NEXT_STEPS, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
