"""Rollouts of slime with a simulated engine, as functions that slime loads: one generates, the other grades."""

import asyncio
import importlib
import importlib.util
import json
import pathlib
import random
import sys
import types

STAND_IN = pathlib.Path(__file__).parent / "stand_ins"
IS_REAL = importlib.util.find_spec("slime") is not None
if not IS_REAL:
    sys.path.insert(0, str(STAND_IN))

GROUP_SIZE = 4
# How completions of the next rollouts are graded, what a completion becomes, and what happened.
RUN = types.SimpleNamespace(grade=None, generate=None, events=[])


def make_args(folder, num_prompts=40, **options):
    """Returns arguments as slime parses them, and writes the prompts."""
    path = pathlib.Path(folder) / "prompts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(
            "".join(json.dumps({"input": f"{i} + 1 =", "label": str(i)}) + "\n" for i in range(num_prompts))
        )
    defaults = {
        "prompt_data": str(path),
        "input_key": "input",
        "label_key": "label",
        "metadata_key": "metadata",
        "rollout_global_dataset": True,
        "rollout_shuffle": False,
        "rollout_seed": 42,
        "rollout_batch_size": 4,
        "over_sampling_batch_size": 4,
        "n_samples_per_prompt": GROUP_SIZE,
        "partial_rollout": False,
        "reward_key": None,
        "dps_method": "dps",
        "save": str(pathlib.Path(folder) / "checkpoints"),
        "load": None,
        "buffer_filter_path": None,
        "dynamic_sampling_filter_path": None,
        "rollout_sample_filter_path": None,
        "rollout_all_samples_process_path": f"{__name__}.observe",
        "custom_generate_function_path": f"{__name__}.generate",
        "custom_rm_path": f"{__name__}.grade",
    }
    return types.SimpleNamespace(**defaults | (_real(folder) if IS_REAL else {}) | options)


def _real(folder):
    """Returns what the real slime wants beside: a tokenizer on the disk and the addresses of engines."""
    path = pathlib.Path(folder) / "tokenizer"
    if not path.exists():
        tokenizers, transformers = importlib.import_module("tokenizers"), importlib.import_module("transformers")
        model = tokenizers.models.WordLevel({"<unk>": 0, "1": 1, "+": 2, "=": 3}, unk_token="<unk>")
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(model), unk_token="<unk>", pad_token="<unk>"
        ).save_pretrained(path)
    nothing = (
        "dump_details rollout_max_prompt_len multimodal_keys tool_key sglang_dp_size rollout_stop "
        "rollout_stop_token_ids rollout_sample_hook_path rm_type eval_datasets"
    )
    return dict.fromkeys(nothing.split()) | {
        "hf_checkpoint": str(path),
        "apply_chat_template": False,
        "apply_chat_template_kwargs": {},
        "sglang_server_concurrency": 8,
        "rollout_num_engines": 1,
        "rollout_temperature": 1.0,
        "rollout_top_p": 1.0,
        "rollout_top_k": -1,
        "rollout_max_response_len": 4,
        "rollout_skip_special_tokens": True,
        "mask_offpolicy_in_partial_rollout": False,
        "group_rm": False,
        "ci_test": False,
        "sglang_router_ip": "localhost",
        "sglang_router_port": 0,
    }


def rollouts():
    """Returns slime's own module of rollouts; the requests that abort engines have no engine to go to."""
    module = importlib.import_module("slime.rollout.sglang_rollout")
    if IS_REAL:

        async def no_workers(url):
            return {"workers": []}

        async def abort(urls):
            pass

        module.get, module.abort_servers_until_idle = no_workers, abort
        module.SingletonMeta._instances.clear()
    return module


async def generate(args, sample, sampling_params):
    await asyncio.sleep(0)
    if RUN.generate is not None:
        return RUN.generate(sample)
    sample.response, sample.status = "2", type(sample).Status.COMPLETED
    return sample


async def grade(args, samples):
    # Of one sample; of a list where a completion became several.
    return [RUN.grade(sample) for sample in samples] if isinstance(samples, list) else RUN.grade(samples)


def chance(sample):
    """Returns a reward of 0 or 1 that depends on the prompt and the number of the sample alone."""
    return float(random.Random(sample.index).random() < int(sample.label) / 40)


def keeps_mixed(args, group, **kwargs):
    return len({sample.reward for sample in group}) > 1


def observe(args, all_samples, get_samples):
    """Notes what slime hands over, and gives it to dps_jax."""
    rows = [[(int(sample.label), sample.reward) for sample in flat(group)] for group in all_samples]
    RUN.events.append(("observe", rows))
    importlib.import_module("dps_jax.integrations.slime").observe(args, all_samples, get_samples)


def flat(group):
    return [sample[-1] if isinstance(sample, list) else sample for sample in group]
