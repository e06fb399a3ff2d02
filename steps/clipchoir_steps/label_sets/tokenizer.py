"""Prompts -> token ids: one rule for the export and for whatever embeds prompts at run time."""

import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

CONTEXT_LENGTH = 77
START_OF_TEXT, END_OF_TEXT, PAD = 49406, 49407, 0
_LONGEST = CONTEXT_LENGTH - 2  # beside start and end


class PromptTokenizer:
    """CLIP's byte-pair encoding, read from a `tokenizer.json`.

    Source: the CLIP tokenizer (github.com/openai/CLIP, `simple_tokenizer.py`) with open_clip's text cleaning.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids (N, 77): start, text (cut to fit), end, then zeros."""
        tokens = np.full((len(prompts), CONTEXT_LENGTH), PAD, np.int64)  # (N, 77)
        for row, words in zip(tokens, self._ids(prompts), strict=True):
            ids = [START_OF_TEXT, *words[:_LONGEST], END_OF_TEXT]
            row[: len(ids)] = ids
        return tokens

    def distinct(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """Each sequence of tokens once, however many prompts have it.

        Returns:
            (U, 77) token ids, in the order of the prompts, and (N,) which of them is each prompt's.
        """
        tokens = self(prompts)
        rows: dict[bytes, int] = {}
        index = np.array([rows.setdefault(row.tobytes(), len(rows)) for row in tokens], np.intp)
        _, firsts = np.unique(index, return_index=True)
        return tokens[firsts], index

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """Those that do not fit."""
        return [prompt for prompt, ids in zip(prompts, self._ids(prompts), strict=True) if len(ids) > _LONGEST]

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch([_clean(prompt) for prompt in prompts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
