"""Texts as sequences of byte pair encoded tokens: two books, or the One Billion Word corpus.

Byte pair encoding (Sennrich et al. 2015, arXiv 1508.07909) is that of SentencePiece, which learns
it from the training text itself: there is nothing to download.
"""

import functools
import gzip
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gns_keras.tasks.datasets import DATA_VARIABLE, find_data_folder, load_tfds

if TYPE_CHECKING:
    import sentencepiece
    import tensorflow as tf

SEQUENCE_LENGTH = 20
BOOKS = ("tinyshakespeare", "warandpeace")
TRAIN_SHARE = 0.9  # Of the lines of a book; the end of it is the test split.
LM1B_SENTENCES = 500_000  # Sentences that the encoding of the corpus is learnt from.
_MAX_LINE = 16_384  # Bytes; SentencePiece leaves longer lines out when it learns.


def load_book(name: str, split: str = "train") -> list[str]:
    """Returns the lines of a book that are not empty.

    Args:
        name: "tinyshakespeare" or "warandpeace".
        split: "train" (the first 90 % of the lines) or "test".

    Raises:
        ValueError: There is no such split.
        RuntimeError: The book is not in the local folder, nor at tfds.
    """
    if split not in ("train", "test"):
        raise ValueError(f'`split` should be "train" or "test". Received: split={split!r}.')
    lines = [line for line in _read(name).splitlines() if line.strip()]
    cut = int(TRAIN_SHARE * len(lines))
    return lines[:cut] if split == "train" else lines[cut:]


def learn_encoding(
    lines: Iterable[str], vocabulary_size: int
) -> "sentencepiece.SentencePieceProcessor":
    """Learns a byte pair encoding. Equal lines give an equal encoding.

    Args:
        lines: Training text. Token 1 ends a line.
        vocabulary_size: Tokens.

    Raises:
        ModuleNotFoundError: sentencepiece is not installed.
        ValueError: The text is too small for so many tokens.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The language models need sentencepiece, which is not installed. Install it with: "
            "pip install 'gns-keras[text]'.",
            name=error.name,
        ) from error
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary_size,
            character_coverage=1.0,
            max_sentence_length=_MAX_LINE,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"Expected a text from which {vocabulary_size} tokens can be learnt. SentencePiece "
            f"says: {error}"
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@functools.lru_cache(maxsize=4)
def book_encoding(name: str, vocabulary_size: int) -> "sentencepiece.SentencePieceProcessor":
    """Returns the encoding learnt from the training split of a book, learnt once."""
    return learn_encoding(load_book(name), vocabulary_size)


def book_sequences(name: str, split: str, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a book as sequences of 20 tokens, and the tokens that follow each of them.

    Args:
        name: "tinyshakespeare" or "warandpeace".
        split: "train" or "test".
        vocabulary_size: Tokens of the encoding.

    Returns:
        `(x, y)`: int32, shape `(n, 20)` both; `y` is one token ahead of `x`.
    """
    encoding = book_encoding(name, vocabulary_size)
    tokens = list(_tokens(encoding, load_book(name, split)))
    count = (len(tokens) - 1) // SEQUENCE_LENGTH
    text = np.array(tokens[: count * SEQUENCE_LENGTH + 1], dtype=np.int32)
    return text[:-1].reshape(count, -1), text[1:].reshape(count, -1)


def lm1b_sequences(split: str, vocabulary_size: int) -> "tf.data.Dataset":
    """Returns the One Billion Word corpus as single sequences, encoded as it is read.

    Args:
        split: "train" or "test".
        vocabulary_size: Tokens of the encoding, which is learnt from the first 500,000 sentences
            of the training split.

    Returns:
        `(x, y)`: int32, shape `(20,)` both.

    Raises:
        ValueError: There is no such split.
        RuntimeError: tfds could not provide the corpus.
    """
    if split not in ("train", "test"):
        raise ValueError(f'`split` should be "train" or "test". Received: split={split!r}.')
    import tensorflow as tf

    encoding = _lm1b_encoding(vocabulary_size)

    def sequences() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        tokens = _tokens(encoding, _lm1b_lines(split))
        last = next(tokens, None)
        while last is not None:
            window = np.array([last, *itertools.islice(tokens, SEQUENCE_LENGTH)], dtype=np.int32)
            if len(window) <= SEQUENCE_LENGTH:
                return
            yield window[:-1], window[1:]
            last = window[-1]

    spec = tf.TensorSpec((SEQUENCE_LENGTH,), tf.int32)
    return tf.data.Dataset.from_generator(sequences, output_signature=(spec, spec))


@functools.lru_cache(maxsize=1)
def _lm1b_encoding(vocabulary_size: int) -> "sentencepiece.SentencePieceProcessor":
    lines = itertools.islice(_lm1b_lines("train"), LM1B_SENTENCES)
    return learn_encoding(lines, vocabulary_size)


def _lm1b_lines(split: str) -> Iterator[str]:
    for sentence in load_tfds("lm1b", split).as_numpy_iterator():
        yield sentence["text"].decode("utf-8")


def _tokens(encoding: Any, lines: Iterable[str]) -> Iterator[int]:
    """The tokens of all lines in a row, each line with its end."""
    for line in lines:
        yield from encoding.encode(line)
        yield encoding.eos_id()


def _read(name: str) -> str:
    if name not in BOOKS:
        raise ValueError(f"Expected one of {BOOKS}. Received: {name!r}.")
    folder = find_data_folder()
    file = f"{name}.txt.gz"
    if folder is not None and (folder / file).is_file():
        return gzip.decompress((folder / file).read_bytes()).decode("utf-8-sig")
    if name != "tinyshakespeare":
        raise RuntimeError(
            f"The book {name} should be the file {file} in the folder that {DATA_VARIABLE} names. "
            f"Received: {folder or 'no folder'}. Project Gutenberg has its text (book 2600)."
        )
    parts = [load_tfds("tiny_shakespeare", part, file) for part in ("train", "validation", "test")]
    rows = itertools.chain.from_iterable(part.as_numpy_iterator() for part in parts)
    return "".join(row["text"].decode("utf-8") for row in rows)
