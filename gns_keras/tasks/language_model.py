"""LSTM language models (McCandlish et al. 2018, appendix A.4.3).

"a size-2048 LSTM on the One Billion Word Benchmark corpus, using byte pair encoding with a
vocabulary of size 40,000 and a 512-dimensional embedding space. The LSTMs were trained with Adam
using momentum 0.5, without dropout, with the gradients clipped to norm 10, and with 20-token
sequences. [...] LSTM cell states were reset to zero between samples, and so we have reported
perplexity for the last token of the 20-token sequences. [...] We also trained 1024 and 512 size
LSTMs for model size comparison; for the last we used a smaller 256-dimensional embedding space. The
model size comparison training runs were conducted with a batch size of 1024 and Adam learning rate
of 0.0007."

The paper counts a batch in tokens. Batches are made of sequences here, and split by sequence, as
the tokens of one are not independent. The loss is the mean over all tokens. The variants train on a
book, with fewer tokens in the vocabulary.
"""

import functools
from typing import TYPE_CHECKING, Any

from gns_keras.tasks import Task
from gns_keras.tasks.texts import SEQUENCE_LENGTH, book_sequences, lm1b_sequences

if TYPE_CHECKING:
    import keras

LEARNING_RATE = 0.0007  # The paper's, at a batch of 1,024 (51 sequences here). Not tuned.
BATCH_SIZE = 51 * SEQUENCE_LENGTH
EMBEDDING_SIZES = {512: 256, 1024: 512, 2048: 512}
VOCABULARIES = {"lm1b": 40_000, "tinyshakespeare": 4_000, "warandpeace": 8_000}
GOALS = {
    "lm1b": (7.0, 6.0, 5.5, 5.0, 4.5, 4.0),
    "tinyshakespeare": (7.0, 6.0, 5.5, 5.0, 4.5, 4.0),
    "warandpeace": (7.0, 6.0, 5.5, 5.0, 4.5, 4.0),
}
_CITED = {"lm1b": "the One Billion Word corpus", "tinyshakespeare": "40,000 lines of Shakespeare",
          "warandpeace": "War and Peace"}  # fmt: skip


def build_model(
    size: int = 2048, *, vocabulary_size: int = 40_000, embedding_size: int | None = None
) -> "keras.Model":
    """Returns a new model, compiled with Adam; 123,419,712 weights at the default sizes.

    Args:
        size: Units of the LSTM.
        vocabulary_size: Tokens.
        embedding_size: Numbers for every token. Default: 512; 256 where `size` is 512 or less.
    """
    import keras

    from gns_keras.tasks.token_losses import LastTokenLoss

    if embedding_size is None:
        embedding_size = EMBEDDING_SIZES.get(size, 256)
    model = keras.Sequential(
        [
            keras.Input((SEQUENCE_LENGTH,), dtype="int32"),
            keras.layers.Embedding(vocabulary_size, embedding_size),
            keras.layers.LSTM(size, return_sequences=True),
            keras.layers.Dense(vocabulary_size),
        ],
        name=f"lm_{size}",
    )
    model.compile(
        # Clipping the norm also makes gradients dense, which Keras' Adam needs to be right where a
        # token occurs several times in a batch.
        optimizer=keras.optimizers.Adam(LEARNING_RATE, beta_1=0.5, global_clipnorm=10.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[LastTokenLoss()],
    )
    return model


def load_data(split: str = "train", *, data: str = "lm1b") -> Any:
    """Returns sequences of 20 tokens, and the token that follows each of these.

    Args:
        split: "train" or "test".
        data: A key of `VOCABULARIES`.

    Returns:
        For a book arrays `(x, y)`, int32, shape `(n, 20)`; for lm1b a `tf.data.Dataset` of single
        sequences.
    """
    if data == "lm1b":
        return lm1b_sequences(split, VOCABULARIES[data])
    return book_sequences(data, split, VOCABULARIES[data])


_RAN = {(512, "tinyshakespeare"): "400,000 tokens of the real data"}


def _task(name: str, size: int, data: str) -> Task:
    book = f"{data}.txt.gz in the folder GNS_KERAS_DATA"
    if data == "tinyshakespeare":
        book += ", else fetched by tensorflow_datasets"
    real = "mock data only, with a small vocabulary" if data == "lm1b" else "the real data"
    ran = _RAN.get((size, data), f"{50 if size == 512 else 2} steps on {real}")
    return Task(
        name=name,
        description=f"LSTM {size} on {_CITED[data]}, {VOCABULARIES[data]:,} tokens in the "
        "vocabulary",
        unit="tokens",
        data_needed=f"{'lm1b, fetched by tensorflow_datasets' if data == 'lm1b' else book}; "
        "sentencepiece (the extra `text`)",
        build_model=functools.partial(build_model, size, vocabulary_size=VOCABULARIES[data]),
        load_data=functools.partial(load_data, data=data),
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        optimizer="adam",
        goals=GOALS[data],
        status=f"learning rate of the paper, not tuned; {ran}",
        units_per_example=SEQUENCE_LENGTH,
    )


TASK = _task("lm_2048", 2048, "lm1b")
VARIANTS = {
    name: _task(name, size, data)
    for data in VOCABULARIES
    for size in EMBEDDING_SIZES
    if (name := f"lm_{size}" + ("" if data == "lm1b" else f"_{data}")) != TASK.name
}
