import dataclasses
import math

import pytest

from dps_jax import models
from dps_jax.training import _memory

QWEN = {
    "0.5B": {"hidden_size": 896, "num_layers": 24, "num_heads": 14, "head_dim": 64, "mlp_size": 4864},
    "1.5B": {"hidden_size": 1536, "num_layers": 28, "num_heads": 12, "head_dim": 128, "mlp_size": 8960},
}


def qwen(name):
    kind = {"vocab_size": 151_936, "num_kv_heads": 2, "has_qk_norm": False, "has_qkv_bias": True}
    return models.DecoderConfig(**kind, **QWEN[name])


# The numbers of parameters that the model cards of Qwen2.5 round, and 2 layers kv_heads head_dim 2.
CASES = [("0.5B", 494_032_768, 12_288), ("1.5B", 1_543_714_304, 28_672)]


@pytest.mark.parametrize(("name", "count", "per_token"), CASES)
def test_bytes_of_the_state_and_the_cache(name, count, per_token):
    config = qwen(name)
    assert _memory.num_parameters(config) == count
    assert _memory.cache_bytes_per_token(config) == per_token
    small = _memory.Workload(batch_size=3, group_size=5, prompt_length=7, completion_length=11)
    plan = _memory.memory_plan(config, small)
    assert plan.state == 12 * count
    assert plan.gradients == 4 * count
    assert _memory.memory_plan(config, dataclasses.replace(small, rows_per_step=5)).gradients == 8 * count
    assert plan.computing == 4 * count
    assert plan.sampling_weights == 2 * count
    assert plan.cache == (3 * 7 + 3 * 5 * 11 * 1.5) * per_token
    tokens = 3 * 7 + 15 * 11
    assert plan.activations > 2 * tokens * config.num_layers * config.hidden_size
    assert plan.peak == max(plan.update, plan.sampling)
    with_reference = _memory.memory_plan(config, _memory.Workload(has_reference=True))
    assert with_reference.state == 16 * count


def test_devices_share_the_state_along_fsdp_and_the_rows_along_both():
    config = qwen("0.5B")
    one = _memory.memory_plan(config, _memory.Workload())
    split = _memory.memory_plan(config, _memory.Workload(data=2, fsdp=4))
    assert split.state == one.state // 4
    assert math.isclose(split.cache, one.cache / 8)
    assert math.isclose(split.activations, one.activations / 8)
    assert split.sampling_weights == one.sampling_weights
    copies = _memory.memory_plan(config, _memory.Workload(data=8))
    assert copies.state == one.state


def test_the_most_that_fits_is_found():
    config, asked = qwen("1.5B"), _memory.Workload(fsdp=8)
    found = _memory.fit_workload(config, asked, 16e9)
    assert found is not None
    assert _memory.memory_plan(config, found).peak <= 0.9 * 16e9
    assert found.rows_per_step is not None
    if found.rows_per_step < asked.batch_size * asked.group_size:
        more = dataclasses.replace(found, rows_per_step=2 * found.rows_per_step)
        assert _memory.memory_plan(config, more).update > 0.9 * 16e9
    assert _memory.fit_workload(config, _memory.Workload(), 16e9) is None
