"""Greedy decoding: what an answer is, and that a row does not depend on the others."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs moecheck[e2e]: torch")
pytest.importorskip("tokenizers", reason="needs moecheck[e2e]: tokenizers")

import torch

from moecheck.evals.tiny.decode import Answer, Pieces, batch_sizes, greedy
from moecheck.evals.tiny.models import load_model
from moecheck.evals.tiny.network import Network
from moecheck.evals.tiny.text import END, own_tokenizer
from tests.evals.random_models import small, write_random
from tests.evals.tiny.test_same_as_transformers import network_of

PROMPTS = ("Ana has 12 apples.", "A", "On Monday Ben works 3 hours for $20 an hour. How many dollars does Ben earn?")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = write_random(tmp_path_factory.mktemp("model"), small("tiny-glm4-moe"), seed=3)
    return network_of(load_model(str(folder), device="cpu"))


def answers(
    network: Network, prompts: tuple[str, ...], *, until: tuple[str, ...] = (), limit: int = 20
) -> list[Answer]:
    tokenizer = own_tokenizer()
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    return greedy(network, encoded, Pieces(tokenizer), until=until, max_new_tokens=limit)


def test_an_answer_does_not_depend_on_its_batch(network: Network) -> None:
    together = answers(network, PROMPTS)
    assert [answers(network, (prompt,))[0].token_ids for prompt in PROMPTS] == [one.token_ids for one in together]


def test_the_cache_gives_what_a_pass_over_the_whole_text_gives(network: Network) -> None:
    """Each next token again, from a fresh start over prompt and answer so far."""
    ids = own_tokenizer().encode(PROMPTS[0]).ids
    found = answers(network, (PROMPTS[0],), limit=8)[0].token_ids
    with torch.inference_mode():
        hidden, _ = network.start([[*ids, *found]])
        best = network.logits(hidden).argmax(dim=-1).tolist()
    assert best[len(ids) - 1 : -1] == found


def test_a_batch_of_finished_and_going_rows_shrinks_without_a_trace(network: Network) -> None:
    """Rows end at different places by their stop strings; each answer is the one that it would be alone."""
    alone = [answers(network, (prompt,), limit=30)[0] for prompt in PROMPTS]
    pieces = Pieces(own_tokenizer()).texts
    stop = pieces[alone[0].token_ids[3]]
    together = answers(network, PROMPTS * 3, until=(stop,), limit=30)
    for one, prompt in zip(together, PROMPTS * 3, strict=True):
        assert one.token_ids == answers(network, (prompt,), until=(stop,), limit=30)[0].token_ids


def test_no_prompts_give_no_answers(network: Network) -> None:
    assert answers(network, ()) == []


def test_the_limit_ends_an_answer(network: Network) -> None:
    (one,) = answers(network, PROMPTS[:1], limit=5)
    assert (len(one.token_ids), one.finish) == (5, "length")


@pytest.mark.parametrize(
    ("pieces", "until", "text", "finish"),
    [
        pytest.param(["18", "\n", "\n", "Qu"], ("\n\n",), "18", "stop", id="a stop string of two tokens"),
        pytest.param(["18 Question", ":"], ("Question:",), "18 ", "stop", id="one that ends in a later token"),
        pytest.param(["a\n\nb</s>"], ("</s>", "\n\n"), "a", "stop", id="the first of two in one token"),
        pytest.param(["a", "b", "c", "d"], ("x",), "abcd", None, id="none"),
    ],
)
def test_an_answer_is_cut_at_its_first_stop_string(
    pieces: list[str], until: tuple[str, ...], text: str, finish: str | None
) -> None:
    answer = Answer()
    for piece in pieces:
        answer.add(5, piece, until=until, end_token=1, limit=100)
    assert (answer.text, answer.finish) == (text, finish)


def test_the_end_token_ends_an_answer_and_is_kept_among_its_tokens() -> None:
    answer = Answer()
    for token, piece in ((7, "a"), (1, ""), (8, "b")):
        answer.add(token, piece, until=(), end_token=1, limit=100)
    assert (answer.text, answer.token_ids, answer.finish) == ("a", [7, 1], "stop")


@pytest.mark.parametrize(
    ("rows", "sizes"), [(65, [65, 49, 33, 17]), (64, [64, 49, 33, 17]), (129, [129, 97, 65, 33]), (1, [1]), (2, [2, 1])]
)
def test_a_batch_has_few_sizes_that_cross_the_edges_of_tiles(rows: int, sizes: list[int]) -> None:
    assert batch_sizes(rows) == sizes


def test_pieces_put_together_are_the_text() -> None:
    tokenizer = own_tokenizer()
    text = "Ana has 12 + 5 = <<12+5=17>>17 apples.\n#### 17\n\nQuestion: Why?"
    assert "".join(Pieces(tokenizer).texts[token] for token in tokenizer.encode(text).ids) == text
    end = tokenizer.token_to_id(END)
    assert end is not None
    assert Pieces(tokenizer).texts[end] == ""
