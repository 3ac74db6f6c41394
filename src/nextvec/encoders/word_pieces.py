"""The tokens of texts by a WordPiece tokenizer (Schuster and Nakajima 2012), as BERT reads them."""

# Axes: N texts, T tokens of one text.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32
from tokenizers import Tokenizer

from nextvec.encoders.unknown import unknown_share

UNKNOWN = "[UNK]"


@dataclass(frozen=True)
class Tokenized:
    """The tokens of texts.

    Attributes:
        ids: of each text, after truncation.
        counts: tokens of each text before truncation.
    """

    ids: list[Int32[np.ndarray, " _"]]
    counts: Int32[np.ndarray, " N"]


class WordPieces:
    """Cuts texts into tokens, with the two tokens that mark the beginning and the end of a text.

    Attributes:
        most: the most tokens of a text; of a longer one, the last token is kept and tokens before it are dropped.
    """

    def __init__(self, tokenizer: Tokenizer, most: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.most = most

    def read(self, texts: Sequence[str]) -> Tokenized:
        """The tokens of ``texts``."""
        ids = [np.array(each.ids, np.int32) for each in self._tokenizer.encode_batch_fast(list(texts))]
        counts = np.array([len(each) for each in ids], np.int32)
        return Tokenized([self._truncated(each) for each in ids], counts)

    def count(self, texts: Sequence[str]) -> Int32[np.ndarray, " N"]:
        """Tokens of each text before truncation."""
        return np.array([len(each.ids) for each in self._tokenizer.encode_batch_fast(list(texts))], np.int32)

    def unknown_share(self, texts: Sequence[str]) -> Float32[np.ndarray, " N"]:
        """Share of each text's characters, blanks left out, that are in no word of the vocabulary."""
        return unknown_share(self._tokenizer, UNKNOWN, texts)

    def _truncated(self, ids: Int32[np.ndarray, " T"]) -> Int32[np.ndarray, " _"]:
        return ids if len(ids) <= self.most else np.append(ids[: self.most - 1], ids[-1])
