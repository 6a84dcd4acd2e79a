"""Folders made of GGUF files: weights, logits, config files and tokenizer, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dps_jax import models
from tests.experiments import small_gguf as small
from tests.reference import byte_bpe, decoder

tokenizers = pytest.importorskip("tokenizers")


def interleaved(row, position, theta):
    """Turns one head as GGUF's Llama is turned: dimensions 2i and 2i + 1 are a complex number."""
    pairs = row[0::2] + 1j * row[1::2]
    turned = pairs * np.exp(1j * position * theta ** (-np.arange(pairs.size) / pairs.size))
    return np.stack([turned.real, turned.imag], axis=1).ravel()


@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_and_logits_are_those_of_the_file(get_smollm2, tmp_path, monkeypatch, is_tied):
    stored, numbers = small.draw(seed=1, is_tied=is_tied)
    out = small.make_folder(get_smollm2, tmp_path, tensors=stored)
    found, expected = load_file(out / "model.safetensors"), small.hub_tensors(numbers)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float16), err_msg=name)
    model = models.load_pretrained(out, dtype="float32")
    tokens = np.random.default_rng(2).integers(0, len(small.TOKENS), 12)
    logits = np.asarray(jax.jit(lambda tokens: model(tokens))(jnp.asarray(tokens[None])))[0]
    # The file's own rows, turned in the file's own way; half precision in both.
    monkeypatch.setattr(decoder, "rotate", interleaved)
    theirs = decoder.logits({name: value.astype(np.float16) for name, value in numbers.items()}, model.config, tokens)
    assert np.std(theirs) > 1
    np.testing.assert_allclose(logits, theirs, atol=2e-3, rtol=0)


def test_config_files(folder, get_smollm2):
    assert small.names(folder) == sorted(get_smollm2.FILES)
    read = lambda name: json.loads((folder / name).read_text())
    config, ids = read("config.json"), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    expected = {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16", "dtype": "float16"},
        **{"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2},
        **{"head_dim": 16, "intermediate_size": 64, "rope_theta": 50000.0, "rms_norm_eps": 1e-05},
        **{"vocab_size": len(small.TOKENS), "tie_word_embeddings": True, "max_position_embeddings": 320},
        **ids,
    }
    assert {name: config[name] for name in expected} == expected
    assert read("generation_config.json") == ids
    tokens = {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>", "unk": "<|endoftext|>"}
    found = read("tokenizer_config.json")
    assert {role: found[f"{role}_token"] for role in tokens} == tokens
    assert found["chat_template"] == small.TEMPLATE


def test_values_that_files_may_have_or_not(get_smollm2, tmp_path):
    changes = {
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.chat_template": None,
    }
    changes |= {"llama.rope.freq_base": None, "llama.attention.key_length": 16, "llama.rope.scaling.type": "none"}
    out = small.make_folder(get_smollm2, tmp_path, metadata=changes)
    read = lambda name: json.loads((out / name).read_text())
    assert read("generation_config.json") == {"eos_token_id": [2, 0], "bos_token_id": 1}
    assert not {"chat_template", "pad_token"} & read("tokenizer_config.json").keys()
    assert read("config.json")["rope_theta"] == 10_000.0


def test_tokenizer_equals_plain_byte_level_bpe(folder):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = [*small.SPECIALS, "<code>"]
    known = byte_bpe.tables(small.TOKENS, small.MERGES)
    for text in small.texts():
        ids = tokenizer.encode(text).ids
        assert ids == byte_bpe.encode(text, *known, added), repr(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert byte_bpe.decode(ids, small.TOKENS, added) == text
    assert tokenizer.decode(tokenizer.encode("a<|im_end|><code>").ids) == "a<code>"


def test_oracle_by_hand():
    assert byte_bpe.words_of("I'll  go\n\n12, ok ") == ["I", "'ll", " ", " go", "\n\n", "1", "2", ",", " ok", " "]
    ranks = {("a", "b"): 1, ("b", "c"): 0, ("a", "bc"): 2}
    assert byte_bpe.merged(list("abcab"), ranks) == ["abc", "ab"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": None}, "llama.block_count: expected an integer, got none"),
        ({"llama.block_count": 0}, "llama.block_count: expected an integer >= 1, got 0"),
        ({"llama.block_count": 3}, "tensors: expected the tensors of .*; download it again"),
        ({"llama.context_length": "long"}, "llama.context_length: expected an integer, got 'long'"),
        ({"llama.embedding_length": 64}, "llama.rope.dimension_count: expected 10 as the size of a head, got 16"),
        ({"llama.attention.head_count_kv": 4}, "num_kv_heads: expected a divisor of num_heads = 6, got 4"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type: expected 'none', got 'yarn'"),
        ({"llama.attention.value_length": 32}, "llama.attention.value_length: expected 16 as the size of a head"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model: expected 'gpt2', got 'llama'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre: expected 'smollm', got 'qwen2'"),
        ({"tokenizer.ggml.add_bos_token": True}, "tokenizer.ggml.add_bos_token: expected false, got true"),
        ({"tokenizer.ggml.eos_token_id": 9999}, r"eos_token_id: expected an id in \[0, \d+\), got 9999"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id: expected the token that ends a completion, got none"),
        ({"tokenizer.ggml.merges": ["h e", "he x"]}, "merges: expected two tokens .* got 'he x' at 1"),
        ({"tokenizer.ggml.merges": ["hello"]}, "merges: expected two tokens .* got 'hello' at 0"),
        ({"tokenizer.ggml.token_type": small.TYPES[:-1]}, r"token_type: expected \d+ types, one per token"),
        ({"tokenizer.ggml.token_type": [6, *small.TYPES[1:]]}, r"token_type: expected 1 \(normal\), .* got 6 at 0"),
        ({"tokenizer.ggml.tokens": [*small.TOKENS[:-1], "!"]}, "tokens: expected distinct tokens, got '!' again at"),
    ],
)
def test_metadata_that_is_refused(get_smollm2, tmp_path, metadata, message):
    with pytest.raises(ValueError, match=rf"a\.gguf: .*{message}"):
        small.make_folder(get_smollm2, tmp_path, metadata=metadata)
    assert small.names(tmp_path) == ["a.gguf"]


def with_first(value):
    return lambda stored: (np.concatenate([[np.float32(value)], stored["output_norm.weight"][0][1:]]), None)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("output_norm.weight", with_first(np.nan), "tensors.*model.norm.weight.*expected finite numbers, got nan"),
        (
            "output_norm.weight",
            with_first(1e6),
            "tensors.*model.norm.weight.*expected numbers that fit float16, got 1e",
        ),
        ("output_norm.weight", lambda _: (np.ones(96), None), r"tensors.*output_norm.*dequantises, got F64"),
        (
            "output_norm.weight",
            lambda _: (np.ones(95, np.float32), None),
            r"tensors.*model.norm.*expected shape \[96\], got \[95\]",
        ),
        (
            "output_norm.weight",
            lambda _: None,
            r"tensors: expected the tensors of .* missing \['model.norm.weight'\]",
        ),
        (
            "blk.0.attn_q.bias",
            lambda _: (np.ones(96, np.float32), None),
            "tensors: expected the tensors of a Llama without biases, got .*attn_q.bias",
        ),
        ("rope_freqs.weight", lambda _: (np.ones(8, np.float32), None), "tensors: .*rope_freqs.weight.*not supported"),
    ],
)
def test_tensors_that_are_refused(get_smollm2, tmp_path, name, change, message):
    stored, _ = small.draw()
    found = change(stored)
    stored = {key: value for key, value in stored.items() if key != name} | ({} if found is None else {name: found})
    with pytest.raises(ValueError, match=rf"a\.gguf: {message}"):
        small.make_folder(get_smollm2, tmp_path, tensors=stored)
    assert small.names(tmp_path) == ["a.gguf"]


def test_another_architecture_is_refused(get_smollm2, tmp_path):
    with pytest.raises(ValueError, match=r"a\.gguf: general.architecture: expected 'llama', got 'qwen2'; other"):
        small.make_folder(get_smollm2, tmp_path, architecture="qwen2")


def test_damaged_files_are_refused(get_smollm2, tmp_path):
    path = small.write(tmp_path / "a.gguf")
    content = path.read_bytes()
    header = content.index(b"token_embd.weight")
    losses = [content[:size] for size in (0, 3, 9, 30, *range(100, header, 997), header + 9, len(content) - 64)]
    for damaged in [*losses, b"<html>not found</html>", bytes(500), content[::-1]]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.gguf: expected a whole GGUF file, got an error: .*download it again"):
            get_smollm2._gguf.open_file(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, header + 500, 150):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            file = get_smollm2._gguf.open_file(path)
            config = get_smollm2._gguf.decoder_config(file)
            get_smollm2._gguf_tokenizer.tokenizer_json(file)
            get_smollm2._gguf.find_tensors(file, config)
        except ValueError as error:
            if str(path) not in str(error):
                raise
    with pytest.raises(ValueError, match=r"missing\.gguf: expected a whole GGUF file, got an error: No such file"):
        get_smollm2._gguf.open_file(tmp_path / "missing.gguf")
