"""Triton's entry point of the step `preprocess`; what it does is in `clipchoir_steps`."""

import sys
from pathlib import Path

# Triton appends this folder to the path. First, it makes a repository run the steps that it was built with.
sys.path.insert(0, str(Path(__file__).parent))

from clipchoir_steps.preprocess.step import PreprocessStep as TritonPythonModel

__all__ = ["TritonPythonModel"]
