"""Triton's entry point of the step `ensembling`; what it does is in `clipchoir_steps`."""

import sys
from pathlib import Path

# Triton appends this folder to the path. First, it makes a repository run the steps that it was built with.
sys.path.insert(0, str(Path(__file__).parent))

from clipchoir_steps.scoring.step import EnsemblingStep as TritonPythonModel

__all__ = ["TritonPythonModel"]
