import copy
import json
import pathlib

from slime.utils.types import Sample


class _Dataset:
    def __init__(self, path, prompt_key, label_key):
        rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
        self.origin_samples = self.samples = [Sample(prompt=row[prompt_key], label=row[label_key]) for row in rows]

    def shuffle(self, epoch_id):
        pass

    def __len__(self):
        return len(self.samples)


class RolloutDataSourceWithBuffer:
    def __init__(self, args):
        self.args, self.buffer = args, []
        self.dataset = _Dataset(args.prompt_data, args.input_key, args.label_key)
        self.place = {"epoch_id": 0, "sample_offset": 0, "sample_group_index": 0, "sample_index": 0}

    def __getattr__(self, name):
        if name != "place" and name in self.place:
            return self.place[name]
        raise AttributeError(name)

    def get_samples(self, num_samples):
        groups, self.buffer = self.buffer[:num_samples], self.buffer[num_samples:]
        return groups + [self._group(sample) for sample in self._next(num_samples - len(groups))]

    def _next(self, num_samples):
        first = self.place["sample_offset"]
        found = self.dataset.samples[first : first + num_samples]
        self.place["sample_offset"] = first + len(found)
        if len(found) < num_samples:
            self.place |= {"epoch_id": self.place["epoch_id"] + 1, "sample_offset": 0}
            self.dataset.shuffle(self.place["epoch_id"])
            found = found + self._next(num_samples - len(found))
        return found

    def _group(self, prompt):
        group = [copy.deepcopy(prompt) for _ in range(self.args.n_samples_per_prompt)]
        for sample in group:
            sample.group_index, sample.index = self.place["sample_group_index"], self.place["sample_index"]
            self.place["sample_index"] += 1
        self.place["sample_group_index"] += 1
        return group

    def add_samples(self, samples):
        self.buffer += samples

    def save(self, rollout_id):
        path = self._path(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.place))

    def load(self, rollout_id=None):
        if self.args.load is not None and self._path(self.args.load, rollout_id).exists():
            self.place = json.loads(self._path(self.args.load, rollout_id).read_text())

    def _path(self, root, rollout_id):
        return pathlib.Path(root) / "rollout" / f"global_dataset_state_dict_{rollout_id}.pt"

    def get_buffer_length(self):
        return len(self.buffer)

    def __len__(self):
        return len(self.dataset)
