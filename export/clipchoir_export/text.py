"""The text side: CLIP's tokenizer as a file, and a label set's prompts as embeddings."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from clipchoir_export.families.towers import Tower
from clipchoir_steps import atomic
from clipchoir_steps.label_sets.spec import LabelSet
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer

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
    atomic.write_text(path, tokenizer.to_str(pretty=True))


def embed_prompts(
    label_sets: Sequence[LabelSet], tower: Tower, tokenizer: PromptTokenizer, advance: Callable[[int], None]
) -> dict[str, NDArray[np.float32]]:
    """Embed every prompt of some label sets, one layer's weights in memory at a time.

    Args:
        label_sets: whose prompts; those of the same tokens are embedded once.
        tower: the text tower.
        tokenizer: prompts -> token ids.
        advance: is called with how many more prompts are done.

    Returns:
        By label set: (P, D), rows of length 1.
    """
    prompts = distinct_prompts(label_sets)
    tokens, index = tokenizer.distinct(prompts)  # (U, 77), (P,)
    parts = []
    with tower.streamed() as encode:
        for batch in torch.from_numpy(tokens).split(BATCH):
            parts.append(F.normalize(encode(batch).float(), dim=-1))
            advance(len(batch))
    advance(len(prompts) - len(tokens))
    rows = dict(zip(prompts, torch.cat(parts).numpy()[index], strict=True))
    return {each.name: np.stack([rows[prompt] for prompt in each.prompts()]) for each in label_sets}


def distinct_prompts(label_sets: Sequence[LabelSet]) -> list[str]:
    """The prompts of all label sets, each once."""
    return list(dict.fromkeys(prompt for label_set in label_sets for prompt in label_set.prompts()))
