"""The text side: CLIP's tokenizer as a file, and a label set's prompts as embeddings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import nn

from clipchoir_export.ensembling_step import LabelSet, PromptTokenizer

BATCH = 64  # prompts
# How CLIP cuts text into words before merging byte pairs.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_tokenizer(path: Path) -> None:
    """Write CLIP's byte-pair encoding, taken from open_clip's vocabulary, as a `tokenizer.json`."""
    original = SimpleTokenizer()
    merges = sorted(original.bpe_ranks, key=original.bpe_ranks.__getitem__)
    tokenizer = Tokenizer(BPE(vocab=original.encoder, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([original.decoder[token] for token in original.all_special_ids])
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.save(str(path))


def embed_prompts(
    label_set: LabelSet, tower: nn.Module, tokenizer: PromptTokenizer, advance: Callable[[int], None]
) -> NDArray[np.float32]:
    """Embed every prompt of a label set: (P, D), rows of length 1. `advance` is told how many prompts are done."""
    tokens = torch.from_numpy(tokenizer(label_set.prompts()))  # (P, 77)
    parts = []
    with torch.inference_mode():
        for batch in tokens.split(BATCH):
            parts.append(F.normalize(tower(batch).float(), dim=-1))
            advance(len(batch))
    embeddings: NDArray[np.float32] = torch.cat(parts).numpy()
    return embeddings
