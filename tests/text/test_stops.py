import numpy as np
import pytest

from dps_jax import text
from tests.training import text_runs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text.load_tokenizer(text_runs.make_model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("words", "stops", "kept", "found"),
    [
        ("12\nnext", ("\n",), "12\n", "12"),
        ("12 END 13 END", ("END",), "12 END", "12 "),
        ("a stop b", ("stop", "st"), "a st", "a "),
        ("nothing here", ("xyz",), "nothing here", "nothing here"),
        ("na\u00efve\u2192end", ("\u2192",), "na\u00efve\u2192", "na\u00efve"),
        ("", ("x",), "", ""),
        ("12", (), "12", "12"),
    ],
)
def test_a_completion_ends_with_the_token_that_completes_the_first_stop(tokenizer, words, stops, kept, found):
    ids = tokenizer.encode(words)
    count, seen = text.end_of(tokenizer, ids, stops)
    assert seen == found
    assert count == len(tokenizer.encode(kept))
    # Against trying every length.
    holds = [any(stop in tokenizer.decode(ids[:length]) for stop in stops) for length in range(len(ids) + 1)]
    assert count == (holds.index(True) if any(holds) else len(ids))


def test_special_tokens_are_no_text_of_a_completion(tokenizer):
    ids = np.array([*tokenizer.encode("7"), tokenizer.end_ids[0]])
    assert text.end_of(tokenizer, ids, ("x",)) == (2, "7")


def test_tokens_that_hold_a_stop_end_a_completion_as_it_is_sampled(tokenizer):
    newline = tokenizer.encode("\n")
    assert text.stop_ids(tokenizer, ("\n",)) == tuple(newline)
    assert text.stop_ids(tokenizer, ("ab",)) == ()  # two tokens
    assert text.stop_ids(tokenizer, ()) == ()


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ("x", r"stops: expected a list of texts, got 'x'"),
        (("a", ""), r"stops\[1\]: expected a text, got an empty one"),
        ((3,), r"stops\[0\]: expected a text, got 3"),
    ],
)
def test_bad_stops_are_refused(stops, message):
    with pytest.raises(ValueError, match=message):
        text.check_stops(stops)
