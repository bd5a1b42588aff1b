"""Text to tokens and back: bytes, the bytes that a text uses, or byte-level byte-pair encoding (BPE). Any
text can be encoded; bytes and BPE are lossless, and the alphabet names what it does not tell."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy
import torch
from jaxtyping import Float64, Int64, Integer
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BpeModel
from torch import Tensor

from zorn.errors import ConfigError


def utf8(text: str) -> bytes:
    """The bytes of a text.

    Raises:
        ConfigError: a text that UTF-8 cannot hold, such as a word of the command line in another encoding.

    >>> utf8("né")
    b'n\\xc3\\xa9'
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"a text must be Unicode, got {text[:60]!r} with {text[error.start]!r}, a byte that the "
            "terminal's encoding could not read: write it in UTF-8, and set a UTF-8 locale (LC_ALL=C.UTF-8)"
        ) from error


_LONGEST_WORD = 240
"""Bytes of a word: the time to learn merges grows with the square of it. A multiple of 2, 3 and 4, the bytes
of a letter, so that a run of letters of one size is cut between two."""

_PIECE = 2**20  # characters that the tokenizers library is given at once: bounds its memory


class Tokenizer(ABC):
    """Maps bytes of text to tokens in [0, vocabulary) and back.

    Attributes:
        name: "bytes", "alphabet" or "bpe".
        vocabulary: how many tokens there are.
    """

    name: str
    vocabulary: int

    @abstractmethod
    def encode(self, text: bytes) -> Integer[Tensor, " time"]:
        """The tokens of a text, in the narrowest of uint8 and int32 that holds the vocabulary.

        Raises:
            ConfigError: this tokenizer cannot read the text.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; bytes that are no UTF-8 (a generated text may hold some) become U+FFFD."""

    def unknown(self, text: bytes) -> bytes:
        """The bytes of a text, each once, that become an escape: the model cannot tell them apart."""
        del text
        return b""

    def token_bytes(self) -> Int64[Tensor, " vocabulary"]:
        """Number of bytes of text that each token stands for: by default one."""
        return torch.ones(self.vocabulary, dtype=torch.int64)

    def untold_nats(self) -> Float64[Tensor, " vocabulary"]:
        """Information about its bytes that each token leaves out, in nats: by default none.

        It is more than 0 where several bytes become the same token. Bits per byte add it to the model's loss.
        """
        return torch.zeros(self.vocabulary, dtype=torch.float64)

    def description(self) -> dict[str, Any]:
        """The entries of `to_json` beside the name: all that tells it from another tokenizer of its class."""
        return {}

    def to_json(self) -> str:
        """The whole tokenizer as a JSON object, for a checkpoint; `tokenizer_from_json` reads it."""
        return json.dumps({"tokenizer": self.name, **self.description()})


class AlphabetTokenizer(Tokenizer):
    """A token is a byte of a given alphabet, usually the bytes that the training text uses; one more token
    stands for any other byte.

    A small text uses some 100 of the 256 bytes; leaving out the rest saves the model their rows. The escape
    token costs ln(256 − alphabet size) nats more than the model's loss, the price of saying which byte it
    was, so that bits per byte stay comparable.

    Args:
        alphabet: the bytes, in any order; at least one.

    Raises:
        ConfigError: an empty alphabet.

    Example:
        >>> tokenizer = AlphabetTokenizer(b"banana")
        >>> tokenizer.encode(b"nab!")
        tensor([2, 0, 1, 3], dtype=torch.uint8)
        >>> tokenizer.decode([2, 0, 1, 3]), tokenizer.vocabulary
        ('nab�', 4)
    """

    name = "alphabet"

    def __init__(self, alphabet: bytes):
        if not alphabet:
            raise ConfigError(
                "tokenizer 'alphabet' needs at least one byte, got none; give it the training text"
            )
        self._alphabet = bytes(sorted(set(alphabet)))
        places = {byte: place for place, byte in enumerate(self._alphabet)}
        self._numbers = bytes(places.get(byte, len(places)) for byte in range(256))
        self.vocabulary = len(places) + (len(places) < 256)

    def unknown(self, text: bytes) -> bytes:
        """The bytes that the alphabet lacks."""
        return bytes(sorted(set(text) - set(self._alphabet)))

    def encode(self, text: bytes) -> Integer[Tensor, " time"]:
        """Places in the sorted alphabet, uint8; the last token for any other byte."""
        return torch.from_numpy(numpy.frombuffer(text.translate(self._numbers), dtype=numpy.uint8).copy())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; escapes, and what is no UTF-8, become U+FFFD."""
        known = (self._alphabet[token : token + 1] or "\ufffd".encode() for token in tokens)
        return b"".join(known).decode("utf-8", errors="replace")

    def untold_nats(self) -> Float64[Tensor, " vocabulary"]:
        """ln(256 − alphabet size) for the escape, which may be any other byte."""
        nats = super().untold_nats()
        nats[len(self._alphabet) :] = math.log(max(1, 256 - len(self._alphabet)))
        return nats

    def description(self) -> dict[str, Any]:
        """The alphabet."""
        return {"alphabet": list(self._alphabet)}


@final
class ByteTokenizer(AlphabetTokenizer):
    """A token is a byte: the vocabulary is exactly 256, and every file can be read.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("aé".encode())
        tensor([ 97, 195, 169], dtype=torch.uint8)
        >>> tokenizer.decode([97, 195, 169])
        'aé'
    """

    name = "bytes"

    def __init__(self) -> None:
        super().__init__(bytes(range(256)))

    def description(self) -> dict[str, Any]:
        """Nothing but the name."""
        return {}


@final
class BpeTokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich, Haddow & Birch 2016; on bytes: Radford et al. 2019).

    The 256 bytes are tokens, so any text can be written; the others are merges of frequent neighbours inside
    words. A word of more than 240 bytes, as in a text without spaces, is cut into words of 240.

    Args:
        model: a byte-level BPE model of the tokenizers library; most callers use `train` or
            `tokenizer_from_json`.

    Example:
        >>> tokenizer = BpeTokenizer.train(b"the cat and the hat and the bat " * 9, vocabulary_size=262)
        >>> tokens = tokenizer.encode("the cat, naïve".encode())
        >>> tokenizer.decode(tokens.tolist()), len(tokens) < len("the cat, naïve".encode())
        ('the cat, naïve', True)
    """

    name = "bpe"

    def __init__(self, model: BpeModel):
        self._model = model
        self.vocabulary = model.get_vocab_size()

    @staticmethod
    def train(text: bytes, *, vocabulary_size: int) -> "BpeTokenizer":
        """Learns the merges from a text; the same text gives the same tokenizer.

        Args:
            text: UTF-8, of the training split only.
            vocabulary_size: tokens wanted, at least 257. A short text may have too few different pairs for
                it: then `vocabulary` of the result is smaller.

        Raises:
            ConfigError: the text is not UTF-8, or the vocabulary is below 257.
        """
        if vocabulary_size < 257:
            raise ConfigError(
                f"vocabulary_size of a BPE tokenizer must be at least 257 (the 256 bytes and one merge), "
                f"got {vocabulary_size}; for 256 use tokenizer='bytes'"
            )
        model = BpeModel(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        cut = pre_tokenizers.Split(Regex(f".{{1,{_LONGEST_WORD}}}"), behavior="isolated")
        model.pre_tokenizer = pre_tokenizers.Sequence([words, cut])
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(_pieces(text), trainer)
        return BpeTokenizer(model)

    def encode(self, text: bytes) -> Integer[Tensor, " time"]:
        """The tokens of a UTF-8 text, int32; more than 2**20 characters are encoded piece by piece."""
        pieces = [numpy.array(self._model.encode(piece).ids, dtype=numpy.int32) for piece in _pieces(text)]
        return torch.from_numpy(numpy.concatenate([numpy.zeros(0, dtype=numpy.int32), *pieces]))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; what is no UTF-8 becomes U+FFFD."""
        return self._model.decode(list(tokens))

    def token_bytes(self) -> Int64[Tensor, " vocabulary"]:
        """As many as characters: the byte-level alphabet writes each byte as one character."""
        lengths = torch.zeros(self.vocabulary, dtype=torch.int64)
        for token, number in self._model.get_vocab().items():
            lengths[number] = len(token)
        return lengths

    def description(self) -> dict[str, Any]:
        """The tokenizers library's own description of the model."""
        return {"model": json.loads(self._model.to_str())}


def tokenizer_from_json(text: str) -> Tokenizer:
    """Reads back what `Tokenizer.to_json` wrote.

    Raises:
        ConfigError: the text is no such JSON.

    Example:
        >>> tokenizer_from_json(ByteTokenizer().to_json()).vocabulary
        256
    """
    try:
        description = json.loads(text)
        match description["tokenizer"]:
            case ByteTokenizer.name:
                return ByteTokenizer()
            case AlphabetTokenizer.name:
                return AlphabetTokenizer(bytes(description["alphabet"]))
            case BpeTokenizer.name:
                return BpeTokenizer(BpeModel.from_str(json.dumps(description["model"])))
            case name:
                raise ConfigError(f"it must name 'bytes', 'alphabet' or 'bpe', not {name!r}")  # noqa: TRY301
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise ConfigError(
            f"a tokenizer's JSON must be what to_json() wrote, got {text[:60]!r}: {error}"
        ) from error


def _pieces(text: bytes) -> Iterator[str]:
    """The text as strings of at most `_PIECE` characters."""
    try:
        characters = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"tokenizer 'bpe' needs UTF-8 text, but byte {error.start} is not ({error.reason}); "
            f"use tokenizer='bytes', which reads any file, or convert the text"
        ) from error
    for start in range(0, len(characters), _PIECE):
        yield characters[start : start + _PIECE]
