import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zorn.tasks.tokenizers
from zorn.errors import ConfigError
from zorn.tasks import AlphabetTokenizer, BpeTokenizer, ByteTokenizer, read_source, tokenizer_from_json

TEXT = read_source("python-docs")[:40_000]
BPE = BpeTokenizer.train(TEXT, vocabulary_size=400)
TOKENIZERS = [pytest.param(ByteTokenizer(), id="bytes"), pytest.param(BPE, id="bpe")]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.text())
def test_any_text_comes_back_and_its_bytes_add_up(tokenizer, text):
    tokens = tokenizer.encode(text.encode()).long()
    assert tokenizer.decode(tokens.tolist()) == text
    assert tokenizer.token_bytes()[tokens].sum() == len(text.encode())
    assert ((tokens >= 0) & (tokens < tokenizer.vocabulary)).all()


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_token_decodes_alone_without_an_error(tokenizer):
    assert len(tokenizer.token_bytes()) == tokenizer.vocabulary
    assert tokenizer.token_bytes().min() >= 1
    for token in range(tokenizer.vocabulary):
        assert tokenizer.decode([token]) != ""


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_kept_tokenizer_gives_the_same_tokens(tokenizer):
    kept = tokenizer_from_json(tokenizer.to_json())
    assert type(kept) is type(tokenizer)
    assert kept.vocabulary == tokenizer.vocabulary
    assert torch.equal(kept.encode(TEXT), tokenizer.encode(TEXT))
    assert kept.to_json() == tokenizer.to_json()


def test_bytes_are_the_bytes():
    everything = bytes(range(256))
    assert ByteTokenizer().vocabulary == 256
    assert ByteTokenizer().encode(everything).tolist() == list(everything)


def test_bpe_shortens_the_text_and_has_the_vocabulary_asked_for():
    assert BPE.vocabulary == 400
    assert len(BPE.encode(TEXT)) < 0.75 * len(TEXT)


def test_the_same_text_trains_the_same_bpe():
    assert BpeTokenizer.train(TEXT, vocabulary_size=400).to_json() == BPE.to_json()


def test_a_long_text_is_encoded_piece_by_piece_without_loss(monkeypatch):
    monkeypatch.setattr(zorn.tasks.tokenizers, "_PIECE", 1000)
    assert BPE.decode(BPE.encode(TEXT).tolist()) == TEXT.decode()


def test_bpe_says_that_it_needs_utf8():
    with pytest.raises(ConfigError, match=r"needs UTF-8 text, but byte 2 is not .* use tokenizer='bytes'"):
        BPE.encode(b"ab\xff")
    with pytest.raises(ConfigError, match="needs UTF-8 text"):
        BpeTokenizer.train(b"ab\xff", vocabulary_size=300)


def test_bpe_vocabulary_holds_all_bytes():
    with pytest.raises(ConfigError, match=r"at least 257 .* got 256"):
        BpeTokenizer.train(TEXT, vocabulary_size=256)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", json.dumps({"tokenizer": "bpe"}), json.dumps({"tokenizer": "words"})]
)
def test_another_json_is_refused(text):
    with pytest.raises(ConfigError, match="a tokenizer's JSON must"):
        tokenizer_from_json(text)


def test_the_alphabet_is_the_bytes_of_the_text_and_an_escape():
    tokenizer = AlphabetTokenizer(b"abracadabra")
    assert tokenizer.vocabulary == 6
    assert tokenizer.encode(b"cab").tolist() == [2, 0, 1]
    assert tokenizer.encode("é?".encode()).tolist() == [5, 5, 5]
    assert tokenizer.decode([4, 0, 3]) == "rad"
    kept = tokenizer_from_json(tokenizer.to_json())
    assert kept.encode(b"drab!").tolist() == tokenizer.encode(b"drab!").tolist()


def test_an_escape_costs_what_it_leaves_untold():
    assert AlphabetTokenizer(b"ab").untold_nats().tolist() == pytest.approx([0, 0, math.log(254)])
    every_byte = AlphabetTokenizer(bytes(range(256)))
    assert every_byte.vocabulary == 256
    assert every_byte.untold_nats().tolist() == [0.0] * 256


def test_an_empty_alphabet_is_an_error():
    with pytest.raises(ConfigError, match="at least one byte"):
        AlphabetTokenizer(b"")


@pytest.mark.parametrize("text", ["z" * 5000, "字" * 5000, "ab" * 2000 + " " + "c" * 3000])
def test_no_merge_is_longer_than_the_longest_word_and_nothing_is_lost(text):
    tokenizer = BpeTokenizer.train(text.encode(), vocabulary_size=300)
    assert 16 < int(tokenizer.token_bytes().max()) <= 240
    assert tokenizer.decode(tokenizer.encode(text.encode()).tolist()) == text


def test_a_word_of_240_bytes_is_still_one():
    tokenizer = BpeTokenizer.train(b"x" * 240, vocabulary_size=300)
    assert tokenizer.encode(b"x" * 240).tolist() == tokenizer.encode(b"x" * 240 + b" ").tolist()[:-1]
    assert int(tokenizer.token_bytes().max()) > 64
