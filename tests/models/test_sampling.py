"""Cached sampling: its log-probs, its frequencies, its nucleus, its ends, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from dps_jax import models
from dps_jax.models import _drawing, _weights
from tests.models import cases
from tests.reference import decoder as reference

PAD, END = cases.PAD, cases.END


# Most tests sample for prompts of these lengths, so that they share programs.
LENGTHS, WIDTH = (5, 2, 4), 5


def sample(model, prompts, key=0, jit=True, traced=None, **options):
    """Returns completions; options in `traced` are arguments of the compiled program."""
    options = {"group_size": 3, "completion_length": 6, "end_id": END, "pad_id": PAD, **options}
    graphdef, params = nnx.split(model)
    run = lambda params, *arrays, **traced: models.sample(nnx.merge(graphdef, params), *arrays, **options, **traced)
    return (jax.jit(run) if jit else run)(params, prompts, jax.random.key(key), **traced or {})


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", sorted(cases.KINDS))
def test_log_probs_are_those_of_the_teacher_forced_pass_and_of_the_reference(kind, temperature):
    model, prompts = cases.decoder(kind), cases.prompts(LENGTHS, WIDTH)
    found = sample(model, prompts, traced={"temperature": temperature})
    scored, entropies = models.completion_log_probs(model, prompts, found.tokens, pad_id=PAD, temperature=temperature)
    np.testing.assert_allclose(found.log_probs, jnp.where(found.mask, scored, 0), atol=1e-4)
    tensors = _weights.to_hugging_face(model)
    for row, prompt in enumerate(np.asarray(prompts)):
        for member in range(3):
            length = int(found.mask[row, member].sum())
            completion = np.asarray(found.tokens[row, member, :length])
            expected, entropy = reference.completion_log_probs(
                tensors, model.config, prompt[prompt != PAD], completion, temperature
            )
            np.testing.assert_allclose(found.log_probs[row, member, :length], expected, atol=1e-4)
            np.testing.assert_allclose(entropies[row, member, :length], entropy, atol=1e-4)


def test_completions_end_once_and_are_padded_behind():
    found = sample(cases.decoder(scale=0.1), cases.prompts([3] * 40, width=3), completion_length=12, group_size=4)
    tokens, mask = np.asarray(found.tokens), np.asarray(found.mask)
    is_end = mask & (tokens == END)
    is_behind = np.cumsum(is_end, axis=-1) - is_end > 0
    np.testing.assert_array_equal(mask, ~is_behind)
    assert np.all(tokens[~mask] == PAD)
    assert np.all(found.log_probs[~mask] == 0)
    lengths = mask.sum(axis=-1)
    assert lengths.min() < 6
    assert lengths.max() == 12


def test_frequencies_match_the_probabilities_of_the_model():
    # Two tokens each, so that 13 * 13 outcomes can be counted; the second depends on the cache.
    model, prompts = cases.decoder(scale=0.25), cases.prompts([4, 2], width=4)
    count = 20_000
    found = sample(model, prompts, key=3, group_size=count, completion_length=2)
    tensors = _weights.to_hugging_face(model)
    for row, prompt in enumerate(np.asarray(prompts)):
        prompt = prompt[prompt != PAD]
        first = np.exp(reference.log_softmax(reference.logits(tensors, model.config, prompt)[-1:])[0])
        expected = np.zeros((13, 13))
        for token in range(13):
            if token == END:
                expected[token, PAD] = first[token]
                continue
            after = reference.logits(tensors, model.config, np.append(prompt, token))[-1:]
            expected[token] = first[token] * np.exp(reference.log_softmax(after)[0])
        counts = np.zeros((13, 13))
        np.add.at(counts, tuple(np.asarray(found.tokens[row]).T), 1)
        is_likely = expected * count >= 8
        observed = np.append(counts[is_likely], counts[~is_likely].sum())
        wanted = np.append(expected[is_likely], expected[~is_likely].sum()) * count
        assert scipy.stats.chisquare(observed, wanted).pvalue > 1e-3
        # A model of another temperature would be noticed.
        warmer = wanted**0.9 / np.sum(wanted**0.9) * count
        assert scipy.stats.chisquare(observed, warmer).pvalue < 1e-6


def test_members_of_a_group_and_rounds_differ():
    model, prompts = cases.decoder(scale=0.1), cases.prompts([3, 3], width=3)
    found = sample(model, prompts, group_size=8, completion_length=8)
    rows = np.asarray(found.tokens).reshape(16, -1)
    assert len(np.unique(rows, axis=0)) > 12
    again, other = (
        sample(model, prompts, group_size=8, completion_length=8),
        sample(model, prompts, key=1, group_size=8, completion_length=8),
    )
    np.testing.assert_array_equal(again.tokens, found.tokens)
    assert np.any(np.asarray(other.tokens[:, :, :6]) != found.tokens[:, :, :6])


def test_prompts_may_be_closed_over():
    model, prompts = cases.decoder(), cases.prompts(LENGTHS, WIDTH)
    graphdef, params = nnx.split(model)
    options = {"group_size": 3, "completion_length": 6, "end_id": END, "pad_id": PAD}
    run = jax.jit(lambda params: models.sample(nnx.merge(graphdef, params), prompts, jax.random.key(0), **options))
    np.testing.assert_array_equal(run(params).tokens, sample(model, prompts).tokens)


def test_a_low_temperature_is_greedy():
    model, prompts = cases.decoder(), cases.prompts(LENGTHS, WIDTH)
    found = sample(model, prompts, traced={"temperature": 1e-4})
    assert np.all(found.tokens == found.tokens[:, :1])
    logits = model(prompts, prompts != PAD)[:, -1]
    np.testing.assert_array_equal(found.tokens[:, 0, 0], jnp.argmax(logits, axis=-1))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [2]), (0.5, [2]), (0.51, [2, 0]), (0.8, [2, 0]), (0.85, [2, 0, 3]), (1.0, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
    logits = jnp.log(jnp.array([[0.3, 0.05, 0.5, 0.15]]))
    found = _drawing.nucleus(logits, top_p)
    assert sorted(np.flatnonzero(np.isfinite(found[0]))) == sorted(kept)
    np.testing.assert_array_equal(found[0, kept], logits[0, kept])


def test_top_p_samples_from_the_nucleus_and_reports_whole_log_probs():
    model, prompts = cases.decoder(scale=0.2), cases.prompts([4], width=4)
    found = sample(model, prompts, group_size=2000, completion_length=1, top_p=0.5)
    logits = model(prompts)[:, -1]
    allowed = np.flatnonzero(np.isfinite(_drawing.nucleus(logits, 0.5)[0]))
    assert 1 < allowed.size < 8
    assert set(np.unique(found.tokens)) == set(allowed)
    expected = jax.nn.log_softmax(logits[0])[found.tokens[0, :, 0]]
    np.testing.assert_allclose(found.log_probs[0, :, 0], expected, atol=1e-4)


def test_a_batch_that_has_ended_does_no_more_work():
    """The loop's condition is what stops it: a model that ends at once leaves after one of a million steps."""
    model = cases.decoder()
    model.embedding.embedding[...] = model.embedding.embedding[...].at[END].mul(60.0)
    prompts = cases.prompts([3, 3], width=3)
    assert np.all(jnp.argmax(jnp.abs(model(prompts)[:, -1]), axis=-1) == END)
    sign = jnp.sign(model(prompts)[0, -1, END])
    model.embedding.embedding[...] = model.embedding.embedding[...].at[END].mul(sign)
    found = sample(model, prompts[:1], completion_length=20_000, temperature=0.1)
    assert np.all(found.tokens[..., 0] == END)
    assert found.mask.sum() == 3


def test_wide_and_narrow_padding_give_the_same_log_probs():
    model, prompts = cases.decoder(), cases.prompts(LENGTHS, WIDTH)
    wide = jnp.pad(prompts, ((0, 0), (4, 0)), constant_values=PAD)
    one, other = sample(model, prompts), sample(model, wide)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_gradients_of_log_probs_match_differences_of_the_reference():
    model, prompts = cases.decoder(scale=0.2), cases.prompts([4, 2], width=4)
    completions = jnp.array([[[3, 5, END]], [[7, END, PAD]]])
    graphdef, params = nnx.split(model)
    mask = completions != PAD

    def total(params):
        log_probs, _ = models.completion_log_probs(nnx.merge(graphdef, params), prompts, completions, pad_id=PAD)
        return jnp.sum(jnp.where(mask, log_probs, 0.0))

    def exact(params):
        tensors = _weights.to_hugging_face(nnx.merge(graphdef, params))
        value = 0.0
        for prompt, completion in zip(np.asarray(prompts), np.asarray(completions)[:, 0], strict=True):
            row = completion[completion != PAD]
            value += reference.completion_log_probs(tensors, model.config, prompt[prompt != PAD], row)[0].sum()
        return value

    grads = jax.jit(jax.grad(total))(params)
    rng = np.random.default_rng(0)
    for _ in range(4):
        # Along random directions; differences of float64 functions of float32 weights, hence the wide step.
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
        moved = lambda step, d=direction: exact(jax.tree.map(lambda leaf, part: leaf + step * part, params, d))
        step = 2e-3
        slopes = [(moved(scale * step) - moved(-scale * step)) / (2 * scale * step) for scale in (1, 2)]
        expected = (4 * slopes[0] - slopes[1]) / 3
        found = sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


BAD = [
    ({"group_size": 0}, r"group_size: expected an integer >= 1, got 0"),
    ({"completion_length": 0}, r"completion_length: expected an integer >= 1, got 0"),
    ({"temperature": -0.5}, r"temperature: expected a number >= 0, got -0\.5; 0 takes the most likely token"),
    ({"temperature": float("nan")}, r"temperature: expected a number >= 0, got nan"),
    ({"top_k": 0}, r"top_k: expected an integer >= 1, got 0"),
    ({"num_tokens": 14}, r"num_tokens: expected an integer >= 1 and <= 13, got 14"),
    ({"end_ids": [2, 3]}, r"end_id: expected either end_id or end_ids, got end_id = 1 and end_ids = \[2, 3\]"),
    ({"end_id": None}, r"end_id: expected either end_id or end_ids, got end_id = None and end_ids = None"),
    ({"end_id": None, "end_ids": [1, 13]}, r"end_ids: expected an integer >= 0 and <= 12, got 13"),
    (
        {"is_prompt_token": np.ones((1, 3), bool)},
        r"is_prompt_token: expected the shape of prompts, \[1, 2\], got \[1, 3\]",
    ),
    ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], got 0\.0"),
    ({"top_p": 1.2}, r"top_p: expected a number in \(0, 1\], got 1\.2"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(cases.decoder(), cases.prompts([2], width=2), **options)


def test_a_mask_with_padding_on_the_right_is_refused():
    for mask in ([[True, True], [True, False]], [[True, True, True], [True, False, True]]):
        prompts = np.full(np.shape(mask), 3)
        with pytest.raises(ValueError, match=r"prompts: expected padding on the left only, .* in row 1$"):
            sample(cases.decoder(), prompts, jit=False, is_prompt_token=np.array(mask))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (np.zeros(3, int), r"prompts: expected tokens of shape \[B, P\], got shape \[3\]"),
        (np.zeros((2, 0), int), r"prompts: expected tokens of shape \[B, P\], got shape \[2, 0\]"),
        (np.array([[3, 13]]), r"prompts: expected tokens in \[0, 13\), got 13; the model has another vocabulary"),
        (np.array([[-1, 3]]), r"prompts: expected tokens in \[0, 13\), got -1"),
        (np.array([[3, 4], [3, PAD]]), r"prompts: expected padding on the left only, .* in row 1"),
    ],
)
def test_bad_prompts_are_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        sample(cases.decoder(), prompts, jit=False)


def test_sampling_under_x64_is_what_it_is_without():
    model, prompts = cases.decoder(), cases.prompts(LENGTHS, WIDTH)
    expected = sample(model, prompts)
    with jax.enable_x64(True):
        found = sample(model, prompts)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, expected)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-5)


def test_temperature_zero_takes_the_likeliest_token_whether_traced_or_not():
    model, prompts = cases.decoder(), cases.prompts(LENGTHS, WIDTH)
    found = sample(model, prompts, temperature=0.0)
    traced = sample(model, prompts, traced={"temperature": 0.0})
    np.testing.assert_array_equal(found.tokens, traced.tokens)
    assert np.all(found.tokens == found.tokens[:, :1])
    tensors = _weights.to_hugging_face(model)
    for row, prompt in enumerate(np.asarray(prompts)):
        seen = prompt[prompt != PAD]
        for token in np.asarray(found.tokens[row, 0])[np.asarray(found.mask[row, 0])]:
            assert token == np.argmax(reference.logits(tensors, model.config, seen)[-1])
            seen = np.append(seen, token)
    scored, _ = models.completion_log_probs(model, prompts, found.tokens, pad_id=PAD)
    np.testing.assert_allclose(found.log_probs, jnp.where(found.mask, scored, 0), atol=1e-4)
    np.testing.assert_allclose(traced.log_probs, found.log_probs, atol=1e-5)


@pytest.mark.parametrize(("count", "kept"), [(1, [2]), (2, [0, 2]), (3, [0, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k_keeps_the_likeliest(count, kept):
    logits = jnp.log(jnp.array([[0.3, 0.05, 0.5, 0.15]]))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(_drawing.likeliest(logits, count)[0])), kept)


def test_top_k_draws_from_the_likeliest_and_reports_whole_log_probs():
    model, prompts = cases.decoder(scale=0.1), cases.prompts([3], width=3)
    found = sample(model, prompts, group_size=2000, completion_length=1, top_k=3)
    logits = model(prompts)[0, -1]
    assert set(np.unique(found.tokens)) == set(np.argsort(logits)[-3:].tolist())
    whole = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(found.log_probs[0, :, 0], whole[found.tokens[0, :, 0]], atol=1e-5)


def test_several_tokens_end_a_completion():
    model, prompts = cases.decoder(scale=0.1), cases.prompts([3] * 40, width=3)
    options = {"completion_length": 12, "group_size": 4, "end_id": None, "end_ids": [END, 5, 7]}
    found = sample(model, prompts, **options)
    tokens, mask = np.asarray(found.tokens), np.asarray(found.mask)
    is_end = mask & np.isin(tokens, [END, 5, 7])
    assert all(np.any(tokens[is_end] == token) for token in (END, 5, 7))
    np.testing.assert_array_equal(mask, np.cumsum(is_end, axis=-1) - is_end == 0)


def test_a_mask_says_which_prompt_tokens_are_real():
    # Padding that is a token of the prompts too, as Qwen's is the token that ends a text.
    model = cases.decoder()
    prompts = np.array([[5, PAD, 4, PAD], [3, 5, PAD, 4]])
    is_token = np.array([[True] * 4, [False, True, True, True]])
    found = sample(model, prompts, is_prompt_token=is_token, end_id=PAD)
    scored, _ = models.completion_log_probs(model, prompts, found.tokens, pad_id=PAD, is_prompt_token=is_token)
    np.testing.assert_allclose(found.log_probs, jnp.where(found.mask, scored, 0), atol=1e-4)
    tensors = _weights.to_hugging_face(model)
    for row in range(2):
        length = int(found.mask[row, 0].sum())
        completion = np.asarray(found.tokens[row, 0, :length])
        expected, _ = reference.completion_log_probs(tensors, model.config, prompts[row][is_token[row]], completion)
        np.testing.assert_allclose(found.log_probs[row, 0, :length], expected, atol=1e-4)
    # Without a mask, padding ends where the first other token begins.
    inside = np.array([[PAD, 3, PAD, 4]])
    masked = sample(model, inside, is_prompt_token=np.array([[False, True, True, True]]))
    np.testing.assert_array_equal(sample(model, inside).tokens, masked.tokens)


def test_ids_beyond_the_tokenizer_are_never_drawn():
    model, prompts = cases.decoder(scale=0.1), cases.prompts([3, 3], width=3)
    found = sample(model, prompts, group_size=500, num_tokens=9)
    assert int(found.tokens.max()) == 8
    scored, entropies = models.completion_log_probs(model, prompts, found.tokens, pad_id=PAD, num_tokens=9)
    np.testing.assert_allclose(found.log_probs, jnp.where(found.mask, scored, 0), atol=1e-4)
    first = np.asarray(jax.nn.log_softmax(model(prompts)[:, -1, :9]))
    np.testing.assert_allclose(entropies[:, 0, 0], -np.sum(np.exp(first) * first, axis=-1), atol=1e-5)


def test_with_a_key_each_the_completions_of_a_prompt_do_not_depend_on_the_others():
    model, prompts = cases.decoder(scale=0.1), cases.prompts([4, 2, 3], width=4)
    graphdef, params = nnx.split(model)
    keys = jax.random.split(jax.random.key(7), 3)
    options = {"group_size": 3, "completion_length": 6, "end_id": END, "pad_id": PAD}
    run = jax.jit(lambda params, *arrays: models.sample(nnx.merge(graphdef, params), *arrays, **options))
    whole = run(params, prompts, keys)
    turned = run(params, prompts[::-1], keys[::-1])
    np.testing.assert_array_equal(turned.tokens[::-1], whole.tokens)
    wide = run(params, jnp.pad(prompts, ((0, 0), (3, 0))), keys)
    np.testing.assert_array_equal(wide.tokens, whole.tokens)
    assert len(np.unique(np.asarray(whole.tokens).reshape(9, -1), axis=0)) > 6
    with pytest.raises(ValueError, match=r"key: expected one key, or one for each of 3 prompts, got shape \[2\]"):
        models.sample(model, prompts, keys[:2], **options)
