"""A TensorRT-LLM Vicuna, opened: token ids and frame tokens in, text out as it comes.

    with open_vicuna("vicuna-engine") as vicuna:
        said = vicuna.generate(ids, tokens, max_new_tokens=64, on_text=print)

`ids` are what `LanguageModel.ids` gives, `tokens` what the context graph gives, by Note [Rows] of
`llamavid.runtime.assembly`. Which backend runs depends on the folder. Knows nothing of videos.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamavid.errors import CheckpointError, PromptError
from llamavid.runtime.assembly import FrameTokens
from llamavid.runtime.language import Said, check_max_new_tokens
from llamavid.runtime.tensorrt_llm.prompt_rows import ids_with_rows, rows_of
from llamavid.sampling import Sampling
from llamavid.tokenizer import LanguageTokenizer, TextStream
from llamavid.vicuna_folder import TOKENIZER, VicunaFormat, VicunaNote, read_note

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]


class Backend(Protocol):
    """One of TensorRT-LLM's two, loaded. One call at a time."""

    max_tokens: int  # of a prompt and its answer
    max_rows: int  # of frame tokens in a prompt

    def tokens(
        self, ids: Ids, rows: Array, *, max_new_tokens: int, sampling: Sampling
    ) -> Generator[int, None, None]:
        """New token ids as they come, perhaps with the end token.

        Args:
            ids: int64 [L]; `vocab_size + r` stands for row r.
            rows: float [R, D].
        """
        ...

    def close(self) -> None: ...


class Vicuna:
    """One thread at a time."""

    def __init__(self, note: VicunaNote, tokenizer: LanguageTokenizer, backend: Backend) -> None:
        self.language = note.language
        self._tokenizer, self._backend = tokenizer, backend

    def generate(
        self,
        ids: Ids,
        tokens: FrameTokens | None = None,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        slots: Sequence[range] | None = None,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Said:
        """What comes after a prompt.

        Args:
            ids: int64 [T], `SLOT_ID` where rows go.
            tokens: the frames in the light of the question; None for a prompt of words alone.
            sampling: greedy when left out. TensorRT-LLM draws with numbers of its own: a seed gives the same
                answer there every time, not the answer that it gives elsewhere.
            slots: the rows of each slot; left out, one slot takes all, or as many slots as rows one each.
            on_text: called with each piece of text as it comes.

        Raises:
            PromptError: prompt and answer do not fit what the engine was built for.
            UsageError: ids, rows and slots do not fit each other or the model.
        """
        check_max_new_tokens(max_new_tokens)
        rows = rows_of(tokens, width=self.language.hidden)
        spelled = ids_with_rows(ids, len(rows), vocab_size=self.language.vocab_size, slots=slots)
        self._check_length(len(spelled), max_new_tokens, len(rows))
        produced = self._backend.tokens(
            spelled, rows, max_new_tokens=max_new_tokens, sampling=sampling or Sampling()
        )
        with closing(produced):  # whatever happens, the backend is ready for the next prompt
            return said(
                produced,
                self._tokenizer,
                end_id=self.language.eos_id,
                max_new_tokens=max_new_tokens,
                on_text=on_text,
            )

    def close(self) -> None:
        """Frees the GPU."""
        self._backend.close()

    def __enter__(self) -> Vicuna:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_length(self, prompt: int, max_new_tokens: int, rows: int) -> None:
        if prompt + max_new_tokens > self._backend.max_tokens:
            raise PromptError(
                f"the prompt and its answer need {prompt + max_new_tokens} tokens",
                expected=f"at most {self._backend.max_tokens}, what this Vicuna was built for",
                next_step="Ask about a shorter video or window, or lower --fps or --max-new-tokens.",
            )
        if rows > self._backend.max_rows:
            raise PromptError(
                f"the frames have {rows} rows",
                expected=f"at most {self._backend.max_rows}, the engine's --max_multimodal_len",
                next_step="Build the engine with more, or lower --fps.",
            )


def open_vicuna(folder: Path | str, *, tokenizer: Path | None = None) -> Vicuna:
    """Opens an engine folder of `trtllm-build`, or a folder of `llamavid export-llm --format pytorch`.

    Args:
        tokenizer: `tokenizer.model`; the folder's own when left out.

    Raises:
        CheckpointError: the folder is none of these, or was built by another version.
        DeviceError: TensorRT-LLM is not installed, or another version of it.
    """
    folder = Path(folder)
    note = read_note(folder)
    words = LanguageTokenizer(tokenizer or folder / TOKENIZER)
    if note.format is VicunaFormat.ENGINE:
        from llamavid.runtime.tensorrt_llm.engine_backend import open_engine

        return Vicuna(note, words, open_engine(folder, note))
    if note.format is VicunaFormat.PYTORCH:
        from llamavid.runtime.tensorrt_llm.pytorch_backend import open_pytorch

        return Vicuna(note, words, open_pytorch(folder, note))
    raise CheckpointError(
        f"{folder} is a plain LLaMA, for engines that are not TensorRT-LLM",
        next_step="Export it with --format pytorch or --format engine.",
    )


def said(
    produced: Iterable[int],
    tokenizer: LanguageTokenizer,
    *,
    end_id: int,
    max_new_tokens: int,
    on_text: Callable[[str], None],
) -> Said:
    """Token ids as they come -> the answer; the end token, and what may come after it, is not said."""
    stream, token_ids, pieces = TextStream(tokenizer), list[int](), list[str]()
    for token in produced:
        if token == end_id:
            break
        token_ids.append(token)
        _tell(stream.push(token), pieces, on_text)
    _tell(stream.finish(), pieces, on_text)
    reason = "length" if len(token_ids) == max_new_tokens else "stop"
    return Said("".join(pieces).strip(), tuple(token_ids), reason)


def _tell(text: str, pieces: list[str], on_text: Callable[[str], None]) -> None:
    if text:
        pieces.append(text)
        on_text(text)
