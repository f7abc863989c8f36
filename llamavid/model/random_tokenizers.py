"""Tokenizer files for random checkpoints, made from nothing that must be downloaded.

Takes a vocabulary size, gives the files a release has: `tokenizer.model` for the language model,
`vocab.txt` for the text decoder, and the small JSON files beside them. Nothing is trained and nothing
is drawn: the same size gives the same bytes. Knows nothing about weights.

Note [Prefix pieces]
    SentencePiece's BPE merges two neighbours whenever the joined string is a piece, so a word is one
    token only if the way to it is in the vocabulary. Here every piece of more than one character is
    the beginning of a word, and so are all its own beginnings: `▁v ▁vi ▁vid ▁vide ▁video`. A word
    then grows from the left, one character at a time, up to its longest known beginning, and its rest
    stays single characters. No order of merges can give anything else.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from collections.abc import Iterator
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from llamavid.errors import UsageError

ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # made at import
Piece = ModelProto.SentencePiece

# The words of the prompts come first: a small vocabulary has room for few.
TEXT = """
USER ASSISTANT What is happening in the video describe this movie
A chat between a curious user and an artificial intelligence assistant The assistant gives helpful
detailed and polite answers to the user's questions Below is a Memorize the content and answer my
question after watching Now the movie end Who are the people in this scene and what do they want
How many frames can you see Why does she look at him Where did it begin When was that Which color has
the car Yes No one of them would be on top with his red green blue black white yellow shirt from left
to right as for or not by but have had her its their there then than some all two three four five six
seven eight nine ten first second last next before behind under over between near far up down out
into about man woman child boy girl dog cat bird horse rabbit butterfly tree flower grass street road
house room door window table chair food water ball game music dance ride bike bus train plane boat walk run
sit stand jump play hold throw open close turn move show speak sing cook eat drink read write work sleep
small large big little long short old young new good bad happy sad day night light dark time image
picture camera clip sound plot story character summary person hand head face eye color square circle
"""


def write_llama_tokenizer(folder: Path, *, vocab_size: int, text: str = TEXT) -> None:
    """Write `tokenizer.model` and its two JSON files into the existing `folder`; words of `text` are known.

    Raises:
        UsageError: `vocab_size` is too small for every text to be encoded.
    """
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocab_size, text))

    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    tokens: dict[str, dict[str, object]] = {
        "bos_token": {"content": "<s>", **plain},
        "eos_token": {"content": "</s>", **plain},
        "unk_token": {"content": "<unk>", **plain},
    }
    write_json(folder / "special_tokens_map.json", {**tokens, "pad_token": "<unk>"})
    config: dict[str, object] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": int(1e30),  # "no limit", as releases spell it
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    added = {name: {"__type": "AddedToken", **token} for name, token in tokens.items()}
    write_json(folder / "tokenizer_config.json", {**config, **added})


def write_bert_tokenizer(folder: Path, *, vocab_size: int, leading_unused: int, text: str = TEXT) -> None:
    """Write `vocab.txt` and `tokenizer_config.json` into the existing `folder`; see `bert_vocabulary`."""
    vocabulary = bert_vocabulary(vocab_size, leading_unused=leading_unused, text=text)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sentencepiece_model(vocab_size: int, text: str = TEXT) -> bytes:
    """Serialized SentencePiece BPE model with LLaMA's settings.

    Ids 0, 1, 2 are <unk>, <s>, </s>; then the 256 bytes, the printable ASCII characters, and pieces.
    What is not a piece is encoded as UTF-8 bytes, so no text fails; text is not normalised.

    Raises:
        UsageError: `vocab_size` has no room for bytes and ASCII characters.
    """
    model = ModelProto()
    reserved = [("<unk>", Piece.UNKNOWN), ("<s>", Piece.CONTROL), ("</s>", Piece.CONTROL)]
    reserved += [(f"<0x{byte:02X}>", Piece.BYTE) for byte in range(256)]
    for name, kind in reserved:
        model.pieces.add(piece=name, score=0.0, type=kind)
    for rank, name in enumerate(text_pieces(vocab_size - len(reserved), text)):
        model.pieces.add(piece=name, score=-float(rank), type=Piece.NORMAL)

    trainer = model.trainer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, vocab_size, True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = True, False
    return model.SerializeToString(deterministic=True)


def text_pieces(count: int, text: str = TEXT) -> list[str]:
    """`count` different pieces: characters, beginnings of known words, beginnings of any word.

    See Note [Prefix pieces]. `▁` (U+2581) stands for a space.

    Raises:
        UsageError: `count` has no room for the characters.
    """
    characters = ["▁", *map(chr, range(ord("!"), ord("~") + 1))]
    if count < len(characters):
        missing = len(characters) - count
        raise UsageError(f"a language model vocabulary {missing} short of holding bytes and ASCII characters")
    known = (word[:end] for word in words(text) for end in range(1, len(word) + 1))
    any_word = itertools.chain.from_iterable(
        map("".join, itertools.product(string.ascii_lowercase, repeat=length)) for length in (1, 2, 3, 4)
    )
    beginnings = ("▁" + start for start in itertools.chain(known, any_word))
    return list(itertools.islice(unique(itertools.chain(characters, beginnings)), count))


def bert_vocabulary(vocab_size: int, *, leading_unused: int, text: str = TEXT) -> list[str]:
    """`vocab_size` WordPiece entries for lower-cased text, in BERT's order.

    [PAD], `leading_unused` unused ones (99 in the original, which puts [UNK] at 100), [UNK], [CLS], [SEP],
    [MASK]; then ASCII characters, word continuations, words; filled up with unused ones.

    Raises:
        UsageError: `vocab_size` is too small for every ASCII word to be spelled.
    """
    unused = (f"[unused{number}]" for number in itertools.count())
    special = ["[PAD]", *itertools.islice(unused, leading_unused), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.digits + string.ascii_lowercase
    smallest = [*special, *string.punctuation, *letters, *("##" + letter for letter in letters)]
    if vocab_size < len(smallest):
        raise UsageError(
            f"a text decoder vocabulary of {vocab_size}",
            expected=f"{len(smallest)} or more, to hold special tokens and ASCII characters",
        )
    known = (word.lower() for word in words(text))
    return list(itertools.islice(unique(itertools.chain(smallest, known, unused)), vocab_size))


def words(text: str) -> Iterator[str]:
    """Different words of `text`, in its order, as they are written there."""
    return unique(re.findall("[A-Za-z]+", text))


def unique(items: Iterator[str] | list[str]) -> Iterator[str]:
    seen: set[str] = set()
    for item in items:
        if item not in seen:
            seen.add(item)
            yield item
