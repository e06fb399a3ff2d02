"""Prompts -> embeddings, through the text encoders that are models beside this one."""

from collections.abc import Callable, Mapping

import numpy as np

from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.label_sets.spec import LabelSet
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.scoring.formula import FloatArray

Encode = Callable[[str, np.ndarray], FloatArray]
"""Name of a model, int64 (N, 77) tokens -> (N, D), rows of length 1."""


class PromptEmbedder:
    """Embeds label sets by every encoder of the ensemble."""

    def __init__(
        self, models: Mapping[str, str], fingerprints: Mapping[str, str], tokenizer: PromptTokenizer, encode: Encode
    ) -> None:
        """
        Args:
            models: by encoder: the name of its text encoder.
            fingerprints: by encoder: its checkpoint.
            tokenizer: prompts -> token ids.
            encode: runs one batch.
        """
        self._models = models
        self._fingerprints = fingerprints
        self._tokenizer = tokenizer
        self._encode = encode

    def embed(self, label_set: LabelSet, batch: int) -> EmbeddedLabelSet:
        """Embed every prompt, those of the same tokens once, in batches of this size."""
        prompts = label_set.prompts()
        tokens, order = self._tokenizer.distinct(prompts)  # (U, 77), (P,)
        return EmbeddedLabelSet(
            classes=label_set.classes,
            prompts=tuple(prompts),
            prompt_counts=np.array(label_set.prompt_counts()),
            embeddings={name: self._rows(model, tokens, batch)[order] for name, model in self._models.items()},
            fingerprints=self._fingerprints,
        )

    def cut(self, label_set: LabelSet) -> list[str]:
        """Prompts of which the encoders read only the beginning."""
        return self._tokenizer.cut(list(dict.fromkeys(label_set.prompts())))

    def _rows(self, model: str, tokens: np.ndarray, batch: int) -> FloatArray:
        parts = [self._encode(model, tokens[start : start + batch]) for start in range(0, len(tokens), batch)]
        return np.concatenate(parts)
