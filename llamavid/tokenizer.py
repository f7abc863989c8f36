"""The two tokenizers: LLaMA's SentencePiece for the prompt, BERT's WordPiece for the text decoder.

Both read one local file, so that a device needs no transformers. They give the
ids of the reference's slow `LlamaTokenizer` (legacy behaviour) and
`BertTokenizer`; tests compare them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors

from llamavid.errors import PromptError, UsageError
from llamavid.prompt import SLOT, Part

SLOT_ID = -200  # the reference's IMAGE_TOKEN_INDEX: rows of frame tokens go here


class LanguageTokenizer:
    """SentencePiece as LLaMA uses it."""

    def __init__(self, model_file: Path) -> None:
        """Raises `UsageError` when the file is not a SentencePiece model."""
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(Path(model_file).read_bytes())
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{model_file} cannot be read as a SentencePiece model ({error})") from error
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        self.size: int = self._pieces.GetPieceSize()

    def ids(self, parts: Sequence[Part]) -> npt.NDArray[np.int64]:
        """Prompt ids int64 [T]: bos once in front, each text alone, `SLOT_ID` for every slot."""
        ids = [self.bos_id]
        for part in parts:
            if isinstance(part, str):
                ids += self._pieces.EncodeAsIds(part)
            else:
                ids.append(SLOT_ID if part is SLOT else self.eos_id)
        return np.asarray(ids, np.int64)

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids; bos, eos and unknown pieces are left out."""
        kept = [
            i
            for i in ids
            if 0 <= i < self.size and not self._pieces.IsControl(i) and not self._pieces.IsUnknown(i)
        ]
        return str(self._pieces.DecodeIds(kept))


class TextStream:
    """Text as it comes: holds back what the next id could still change."""

    def __init__(self, tokenizer: LanguageTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        """New text after one more id; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._tokenizer.text(self._ids)
        return "" if text.endswith("�") else self._advance(text)

    def finish(self) -> str:
        """What was held back."""
        return self._advance(self._tokenizer.text(self._ids))

    def _advance(self, text: str) -> str:
        fresh, self._given = text[len(self._given) :], text
        return fresh


class QuestionTokenizer:
    """BERT uncased with an added `[DEC]`, truncated on the left."""

    def __init__(self, vocabulary_file: Path, *, max_tokens: int = 256) -> None:
        """Raises `UsageError` when the vocabulary lacks BERT's special tokens."""
        vocabulary = _read_vocabulary(Path(vocabulary_file))
        missing = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in vocabulary]
        if missing:
            raise UsageError(f"{vocabulary_file} lacks {', '.join(missing)}", expected="a BERT vocab.txt")
        pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces.post_processor = processors.BertProcessing(
            ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
        )
        self._pieces = pieces
        self._max_tokens = max_tokens
        self.size = len(vocabulary) + 1  # [DEC]

    def ids(self, question: str, *, truncate: bool = True) -> npt.NDArray[np.int64]:
        """Question ids int64 [1, L], L <= max_tokens.

        A longer question loses its beginning, as in the reference.

        Raises:
            PromptError: it is longer and `truncate` is off.
        """
        cls_id, *words, sep_id = self._pieces.encode(question).ids
        room = self._max_tokens - 2
        if len(words) > room and not truncate:
            raise PromptError(
                f"the question has {len(words) + 2} text-decoder tokens",
                expected=f"at most {self._max_tokens}",
                next_step="Shorten it, or drop its beginning, as the reference does: --truncate-question.",
            )
        return np.asarray([[cls_id, *words[-room:], sep_id]], np.int64)


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        with file.open(encoding="utf-8") as lines:  # str.splitlines would split at Unicode's separators too
            words = [line.rstrip("\n") for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as a BERT vocabulary ({error})") from error
    return {word: index for index, word in enumerate(words)}
