import json
import pickle
import sys

import numpy as np
import pytest
import tokenizers

from dps_jax import text
from tests.test_damaged_files import LOSSES, refusal
from tests.text import folders

GOLDEN = json.loads(folders.GOLDEN.read_text())
ASK = folders.conversation("What is 12 + 30?")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text.load_tokenizer(folders.write(tmp_path_factory.mktemp("model"), folders.template("qwen3")))


@pytest.mark.parametrize("name", folders.TEMPLATES)
def test_rendered_text_is_that_of_transformers(name, tmp_path):
    tokenizer = text.load_tokenizer(folders.write(tmp_path, folders.template(name)))
    for (messages, variables), golden in zip(folders.CONVERSATIONS, GOLDEN["rendered"][name], strict=True):
        for flag, expected in zip((True, False), golden, strict=True):
            render = lambda messages=messages, flag=flag, variables=variables: tokenizer.render(
                messages, add_generation_prompt=flag, **variables
            )
            if expected is None:
                with pytest.raises(ValueError, match="roles must alternate"):
                    render()
            else:
                assert render() == expected


def test_tokens_and_decoded_text_are_those_of_transformers(tokenizer):
    rendered = [found for found, _ in GOLDEN["rendered"][folders.TEMPLATES[0]]]
    assert tokenizer.encode_batch(rendered) == GOLDEN["ids"]
    for full, ids, decoded, special in zip(
        rendered, GOLDEN["ids"], GOLDEN["decoded"], GOLDEN["with_special"], strict=True
    ):
        assert tokenizer.encode(full) == ids
        assert tokenizer.decode(ids) == decoded
        assert tokenizer.decode(np.array(ids, np.int32), keep_special=True) == special


def test_ids_of_a_folder(tokenizer):
    assert tokenizer.num_tokens == folders.NUM_TOKENS
    assert tokenizer.end_ids == (folders.STOP, folders.END)
    assert tokenizer.pad_id == folders.STOP
    assert tokenizer.special_ids == (folders.END, folders.START, folders.STOP)
    tokenizer.check_fits(folders.NUM_TOKENS)
    tokenizer.check_fits(folders.NUM_TOKENS + 267)
    with pytest.raises(ValueError, match=r"model.*: expected .* below vocab_size = 268, got 269 tokens; take the"):
        tokenizer.check_fits(folders.NUM_TOKENS - 1)
    with pytest.raises(ValueError, match="vocab_size: expected an integer"):
        tokenizer.check_fits(1.5)


@pytest.mark.parametrize(
    ("files", "end_ids", "pad_id"),
    [
        ({"generation_config": {"eos_token_id": folders.END}}, (folders.END, folders.STOP), folders.END),
        ({"generation_config": {"pad_token_id": folders.START}}, (folders.STOP,), folders.START),
        ({"generation_config": {"eos_token_id": None, "pad_token_id": -1}}, (folders.STOP,), folders.STOP),
        ({"generation_config": None}, (folders.STOP,), folders.STOP),
        ({"generation_config": None, "config": {"eos_token_id": 7}}, (7, folders.STOP), 7),
        ({"config": {"eos_token_id": 7}}, (folders.STOP, folders.END), folders.STOP),
        ({"tokenizer_config": {"pad_token": "<|endoftext|>"}}, (folders.STOP, folders.END), folders.END),
        (
            {
                "tokenizer_config": {"eos_token": {"__type": "AddedToken", "content": "<|im_start|>"}},
                "special_tokens_map": {"eos_token": "the", "pad_token": {"content": "<|endoftext|>", "lstrip": False}},
            },
            (folders.STOP, folders.END, folders.START),
            folders.END,
        ),
    ],
)
def test_where_end_and_padding_come_from(files, end_ids, pad_id, tmp_path):
    tokenizer = text.load_tokenizer(folders.write(tmp_path, **files))
    assert tokenizer.end_ids == end_ids
    assert tokenizer.pad_id == pad_id
    assert {*end_ids, pad_id} <= set(tokenizer.special_ids)


def test_end_of_an_ordinary_token_is_left_out_when_decoding(tmp_path):
    tokenizer = text.load_tokenizer(folders.write(tmp_path, tokenizer_config={"eos_token": "the"}))
    ids = tokenizer.encode("in the user")
    assert tokenizer.decode(ids, keep_special=True) == "in the user"
    assert tokenizer.decode([*tokenizer.encode("in"), *tokenizer.encode("the")]) == "in"


def test_ids_without_a_token_have_no_text(tokenizer):
    ids = tokenizer.encode("in the")
    assert tokenizer.decode([*ids, folders.NUM_TOKENS, folders.NUM_TOKENS + 200]) == "in the"
    assert tokenizer.decode([]) == ""
    for ids in ([3, -1], [2**32]):
        with pytest.raises(ValueError, match=r"ids: expected integers in \[0, 2\*\*32\), got .*; mask padding"):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match="ids: expected whole numbers"):
        tokenizer.decode([0.5])


def test_neither_cut_off_nor_padded_as_the_file_says(tmp_path):
    limited = folders.backend()
    limited.enable_truncation(4)
    limited.enable_padding(length=64)
    tokenizer = text.load_tokenizer(folders.write(tmp_path, tokenizer=limited))
    assert len(tokenizer.encode("9876543210")) == 10
    assert [len(row) for row in tokenizer.encode_batch(["9876543210", "a"])] == [10, 1]


def test_nothing_is_added_by_a_post_processor(tmp_path):
    adding = folders.backend()
    adding.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", folders.END)]
    )
    tokenizer = text.load_tokenizer(folders.write(tmp_path, tokenizer=adding))
    assert tokenizer.encode("<|im_start|>") == [folders.START]
    assert tokenizer.encode_batch(["<|im_start|>"]) == [[folders.START]]


def test_a_pickled_tokenizer_is_the_same(tokenizer):
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other.render(ASK) == tokenizer.render(ASK)
    assert other.encode(other.render(ASK)) == tokenizer.encode(tokenizer.render(ASK))
    assert (other.end_ids, other.pad_id, other.num_tokens) == (tokenizer.end_ids, tokenizer.pad_id, 269)
    assert len(repr(other)) < 500


def test_a_base_model_joins_contents(tmp_path):
    tokenizer = text.load_tokenizer(folders.write(tmp_path))
    messages = folders.conversation("One\n", "two", system="Be brief.")
    assert tokenizer.render(messages, enable_thinking=False) == "Be brief.\nOne\n\ntwo"


def test_chat_template_beside_comes_first_and_default_of_several(tmp_path):
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "one of several"}]
    folders.write(tmp_path, several)
    assert text.load_tokenizer(tmp_path).render(ASK) == "one of several"
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert text.load_tokenizer(tmp_path).render(ASK) == "beside"


def test_a_variable_takes_the_place_of_a_special_token(tmp_path):
    tokenizer = text.load_tokenizer(folders.write(tmp_path, "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}"))
    assert tokenizer.render(ASK) == "<|endoftext|><|im_end|>False"
    assert tokenizer.render(ASK, bos_token="") == "<|im_end|>False"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[5].content }}", "UndefinedError"),
        ("{{ 1 // 0 }}{{ messages[0].content / 2 }}", "ZeroDivisionError|TypeError"),
        ("{% set _ = messages.append(1) %}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}{{ raise_exception.__globals__ }}", "SecurityError"),
        ("{{ raise_exception('No system role here') }}", "TemplateError: No system role here"),
    ],
)
def test_a_template_that_fails_names_the_folder(template, reason, tmp_path):
    tokenizer = text.load_tokenizer(folders.write(tmp_path / "folder", template))
    with pytest.raises(ValueError, match=rf"folder: expected a chat template that accepts .*({reason}).*; does"):
        tokenizer.render(ASK, enable_thinking=True)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("What?", "messages: expected messages .*, got 'What\\?'; pass a list"),
        ([], "messages: expected messages .*, got \\[\\]"),
        (["What?"], r"messages\[0\]: expected a mapping, got 'What\?'"),
        ([{"role": "user"}], r"messages\[0\]: expected a content, got keys \['role'\]; add it"),
        ([*ASK, {"role": "user", "content": None}], r"messages\[1\]\.content: expected a text, got None"),
        ([{"role": "user", "content": "\ud83d"}], r"messages\[0\]\.content: expected Unicode text, got half"),
    ],
)
def test_other_messages_are_refused(messages, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        tokenizer.render(messages)


def test_other_texts_are_refused(tokenizer):
    with pytest.raises(ValueError, match="text: expected a text, got 3; convert it"):
        tokenizer.encode(3)
    with pytest.raises(ValueError, match=r"text: expected Unicode text, got half a surrogate pair, '\\udc00' at posi"):
        tokenizer.encode("a\udc00")
    with pytest.raises(ValueError, match=r"texts\[1\]: expected a text, got None"):
        tokenizer.encode_batch(["a", None])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": None}, r"tokenizer_config.json: expected the settings of a tokenizer, got none"),
        ({"tokenizer_config": [1]}, r"tokenizer_config.json: expected the settings of a tokenizer, got list"),
        ({"tokenizer_config": {"eos_token": 5}}, r"tokenizer_config.json: eos_token: expected a token or null, got 5"),
        ({"tokenizer_config": {"pad_token": "[PAD]"}}, r"pad_token: expected a token of tokenizer.json, got '\[PAD\]'"),
        (
            {"tokenizer_config": {}, "generation_config": {}},
            r"tokenizer_config.json: eos_token: expected a token that ends .* nor in generation_config.json; add",
        ),
        ({"generation_config": {"eos_token_id": "the"}}, r"generation_config.json: eos_token_id: expected an id in"),
        ({"generation_config": {"eos_token_id": [True]}}, r"eos_token_id: expected an id in .*, got True; does the"),
        (
            {"generation_config": {"pad_token_id": 269}},
            r"generation_config.json: pad_token_id: .* \[0, 269\).* got 269",
        ),
        ({"template": 7}, r"tokenizer_config.json: chat_template: expected a template, a list .*, got 7"),
        ({"template": "{% for %}"}, r"tokenizer_config.json: chat_template: expected a Jinja template, got an error"),
        (
            {"template": [{"name": "rag", "template": ""}]},
            r"expected a template named 'default', got rag; put the template",
        ),
    ],
)
def test_bad_files_are_refused(files, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        text.load_tokenizer(folders.write(tmp_path, **files))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"folder: expected a folder with tokenizer.json, got '.*nowhere', which is not one; d"
    ):
        text.load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"folder: expected a path, got 3"):
        text.load_tokenizer(3)
    with pytest.raises(
        ValueError, match=r"tokenizer.json: expected the tokenizer in this file, got none; .*save_pretra"
    ):
        text.load_tokenizer(tmp_path)
    folders.write(tmp_path, tokenizer=tokenizers.Tokenizer(tokenizers.models.BPE({}, [])))
    with pytest.raises(ValueError, match=r"tokenizer.json: expected a vocabulary, got none; "):
        text.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_files_are_named(name, tmp_path):
    folders.write(tmp_path, folders.template("qwen3"))
    whole = (tmp_path / name).read_bytes()
    read = lambda path: text.load_tokenizer(path.parent)
    for damage, change in LOSSES.items():
        message = refusal(tmp_path / name, read, change(whole))
        assert message is not None, damage
        assert f"{name}: expected " in message, (damage, message)
        assert "; " in message, (damage, message)  # a remedy
        assert len(message) < 1000, damage
    rng = np.random.default_rng(1)
    for _ in range(20):
        content = bytearray(whole)
        content[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        # Another letter is as good as the one that was there, or is missed in another file.
        message = refusal(tmp_path / name, read, bytes(content))
        assert message is None or ".json: " in message, message


def test_a_chat_template_in_another_encoding_is_named(tmp_path):
    (folders.write(tmp_path) / "chat_template.jinja").write_bytes("Frage: für".encode("latin-1"))
    with pytest.raises(ValueError, match=r"chat_template.jinja: expected a chat template in UTF-8, got .*; download"):
        text.load_tokenizer(tmp_path)


@pytest.mark.parametrize(("module", "library"), [("tokenizers", "`tokenizers`"), ("jinja2", "jinja2")])
def test_a_missing_library_names_the_extra(module, library, tmp_path, monkeypatch):
    folders.write(tmp_path, folders.template("smollm2"))
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "dps_jax.text._chat", raising=False)
    monkeypatch.delattr(text, "_chat", raising=False)
    with pytest.raises(ValueError, match=rf"expected {library} to be installed.*install the extra `text`: pip install"):
        text.load_tokenizer(tmp_path)
