"""The modules that the repository's `ensembling` model runs and the export runs as well.

Triton appends a model's version folder to `sys.path`; so does this module, and hands on what the export needs.
"""

import sys

from clipchoir_export.resources import resource

sys.path.append(str(resource("model_repository") / "ensembling" / "1"))

from clipchoir_label_sets import EmbeddedLabelSet, LabelSetFileError
from clipchoir_prompts import CONTEXT_LENGTH, LabelSet, LabelSetError, PromptTokenizer
from clipchoir_scoring import class_embeddings
from clipchoir_text import PromptEmbedder

__all__ = [
    "CONTEXT_LENGTH",
    "EmbeddedLabelSet",
    "LabelSet",
    "LabelSetError",
    "LabelSetFileError",
    "PromptEmbedder",
    "PromptTokenizer",
    "class_embeddings",
]
