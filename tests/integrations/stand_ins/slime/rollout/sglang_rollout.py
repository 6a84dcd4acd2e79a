import asyncio
import importlib
import types

from slime.utils.types import Sample


def _load(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


async def _complete(args, group):
    for index, sample in enumerate(group):
        if sample.status is not Sample.Status.COMPLETED:
            found = await _load(args.custom_generate_function_path)(args, sample, {})
            for part in found if isinstance(found, list) else [found]:
                if part.status is Sample.Status.COMPLETED:
                    part.reward = await _load(args.custom_rm_path)(args, part)
            group[index] = found
    return group


def generate_rollout(args, rollout_id, data_source, evaluation=False):
    keeps = _load(args.dynamic_sampling_filter_path) if args.dynamic_sampling_filter_path else lambda args, group: True
    kept, every, waiting = [], [], []
    while len(kept) < args.rollout_batch_size:
        while len(waiting) < args.rollout_batch_size - len(kept):
            waiting += data_source.get_samples(args.over_sampling_batch_size)
        group = asyncio.run(_complete(args, waiting.pop(0)))
        every.append(group)
        if keeps(args, group):
            kept.append(group)
    if args.rollout_all_samples_process_path:
        _load(args.rollout_all_samples_process_path)(args, every, data_source.get_samples)
    if args.partial_rollout:
        data_source.add_samples(waiting)
    return types.SimpleNamespace(samples=kept)
