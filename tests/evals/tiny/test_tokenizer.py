"""The tokenizer of the embedded models."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tokenizers", reason="needs moecheck[e2e]: tokenizers")

from moecheck.evals.problems import held_out
from moecheck.evals.tiny.text import END, TOKENIZER, as_document, own_tokenizer
from moecheck.evals.train.make_tokenizer import VOCABULARY, make_tokenizer


def test_it_has_512_tokens_and_knows_the_end() -> None:
    assert own_tokenizer().get_vocab_size() == VOCABULARY
    assert own_tokenizer().token_to_id(END) == 1


def test_every_digit_is_a_token_of_its_own() -> None:
    tokens = own_tokenizer().encode("with 1234 + 56 = <<1234+56=1290>>1290").tokens
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("123456123456" + "12901290")


def test_problems_come_back_as_they_were() -> None:
    for line in held_out().read_text(encoding="utf-8").splitlines()[:300]:
        row = json.loads(line)
        text = as_document(row["question"], row["answer"])
        assert own_tokenizer().decode(own_tokenizer().encode(text).ids) == text


def test_text_of_other_alphabets_becomes_unknown_tokens() -> None:
    assert 0 in own_tokenizer().encode("Ana’s 5 £").ids


def test_the_shipped_file_is_what_the_generated_problems_teach() -> None:
    assert json.loads(make_tokenizer().to_str()) == json.loads(TOKENIZER.read_text(encoding="utf-8"))
