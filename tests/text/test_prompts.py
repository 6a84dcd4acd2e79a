import numpy as np
import pytest

from dps_jax import text
from dps_jax.text import _prompts as module
from tests.text import folders


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text.load_tokenizer(folders.write(tmp_path_factory.mktemp("model"), folders.template("qwen3")))


def question(content):
    return text.Question(({"role": "user", "content": content},), 1, "", None, {})


def test_prompts_are_rendered_and_encoded_in_their_order(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 3)
    questions = [question("the user " * (1 + row % 4) + str(row)) for row in range(10)]
    found = text.encode_questions(questions, tokenizer, max_length=1000, enable_thinking=False)
    assert found.questions == tuple(questions)
    assert found.num_dropped == 0
    assert found.lengths.dtype == np.int32
    assert found.lengths.tolist() == [row.size for row in found.tokens]
    for row, asked in zip(found.tokens, questions, strict=True):
        assert row.dtype == np.int32
        expected = f"<|im_start|>user\n{asked.messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(row, keep_special=True) == expected + "<think>\n\n</think>\n\n"


def test_prompts_that_are_too_long_are_dropped_and_counted(tokenizer):
    questions = [question("9" * length) for length in (5, 50, 6, 51, 7)]
    full = text.encode_questions(questions, tokenizer, max_length=1000)
    limit = int(full.lengths[2])
    found = text.encode_questions(questions, tokenizer, max_length=limit)
    assert found.questions == (questions[0], questions[2])
    assert found.num_dropped == 3
    assert [row.tolist() for row in found.tokens] == [full.tokens[row].tolist() for row in (0, 2)]
    with pytest.raises(
        ValueError, match=rf"questions\[1\]: expected at most max_length = {limit} tokens, got .*; raise"
    ):
        text.encode_questions(questions, tokenizer, max_length=limit, too_long="error")
    shortest = int(full.lengths[0])
    with pytest.raises(
        ValueError, match=rf"max_length: .*, got 3 where the shortest of 5 has {shortest} tokens; raise"
    ):
        text.encode_questions(questions, tokenizer, max_length=3)


def test_bad_input_is_refused(tokenizer, tmp_path):
    encode = lambda questions, **options: text.encode_questions(questions, tokenizer, **({"max_length": 99} | options))
    with pytest.raises(ValueError, match="questions: expected at least one, got none; read some first"):
        encode([])
    with pytest.raises(ValueError, match="max_length: expected an integer >= 1, got 0"):
        encode([question("What?")], max_length=0)
    with pytest.raises(ValueError, match="too_long: expected one of 'drop', 'error', got 'cut'"):
        encode([question("What?")], too_long="cut")
    strict = text.load_tokenizer(folders.write(tmp_path / "strict", "{{ raise_exception('Not so') }}"))
    with pytest.raises(ValueError, match=r"questions\[0\]: .*strict: expected a chat template .* Not so"):
        text.encode_questions([question("What?")], strict, max_length=9)
    blank = text.load_tokenizer(folders.write(tmp_path / "blank", "{% if false %}{% endif %}"))
    with pytest.raises(ValueError, match=r"questions\[0\]: expected a prompt with tokens, got ''; leave it out"):
        text.encode_questions([question("What?")], blank, max_length=9)
