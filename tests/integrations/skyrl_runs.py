"""Experiments of SkyRL on a CPU: its trainer, data loader, data set, callbacks and checkpoints, without models.

What needs GPUs is taken out: the workers (forward passes give zeros, updates are noted, no weights are written), the
inference engines and the generator, which here grades by a function of the test.
"""

import importlib
import json
import pathlib
import sys
import types
import typing

import torch
import typing_extensions

if sys.version_info < (3, 12):
    # SkyRL 0.3.0 asks for Python 3.11, but pydantic refuses its typed dictionaries there.
    typing.TypedDict = typing_extensions.TypedDict
# Imports flash-attn; nothing of it is used.
WORKERS = "skyrl.backends.skyrl_train.workers.fsdp.fsdp_worker"
sys.modules[WORKERS] = types.SimpleNamespace(CriticWorker=None, PolicyWorker=None, RefWorker=None)

main_base = importlib.import_module("skyrl.train.entrypoints.main_base")
trainer_module = importlib.import_module("skyrl.train.trainer")
# Would start Ray to clean up on other machines.
trainer_module.run_on_each_node = lambda *args, **kwargs: None

GROUP_SIZE = 4


def make_config(folder, num_prompts=40, max_steps=6, **options):
    """Returns a configuration of SkyRL, and writes the prompts and a tokenizer."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.jsonl"
    if not path.exists():
        rows = [{"prompt": [{"role": "user", "content": f"{i} + 1 ="}], "label": i} for i in range(num_prompts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizers, transformers = importlib.import_module("tokenizers"), importlib.import_module("transformers")
        model = tokenizers.models.WordLevel({"<pad>": 0, "1": 1, "+": 2, "=": 3}, unk_token="<pad>")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(model), pad_token="<pad>", eos_token="<pad>", unk_token="<pad>"
        )
        tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        tokenizer.save_pretrained(folder / "tokenizer")
    options = {
        "data.train_data": json.dumps([str(path)]),
        "data.val_data": json.dumps([str(path)]),
        "data.dataloader.num_workers": 0,
        "trainer.policy.model.path": str(folder / "tokenizer"),
        "trainer.ckpt_path": str(folder / "checkpoints"),
        "trainer.export_path": str(folder / "exports"),
        "trainer.placement.colocate_all": "false",
        "trainer.strategy": "fsdp",
        "trainer.logger": "console",
        "trainer.epochs": 10,
        "trainer.max_training_steps": max_steps,
        "trainer.train_batch_size": 4,
        "trainer.policy_mini_batch_size": 4,
        "trainer.critic_mini_batch_size": 4,
        "trainer.eval_batch_size": 16,
        "trainer.eval_interval": -1,
        "trainer.eval_before_train": "false",
        "trainer.ckpt_interval": 1,
        "trainer.hf_save_interval": -1,
        "trainer.algorithm.use_kl_loss": "false",
        "trainer.max_prompt_length": 64,
        "generator.inference_engine.enable_ray_prometheus_stats": "false",
        "trainer.enable_ray_gpu_monitor": "false",
        "generator.n_samples_per_prompt": GROUP_SIZE,
        "generator.eval_n_samples_per_prompt": 1,
    } | options
    config = importlib.import_module("skyrl.train.config").SkyRLTrainConfig
    return config.from_cli_overrides([f"{name}={value}" for name, value in options.items()])


class Workers:
    """Stands for the models of SkyRL."""

    def get_lcm_dp_size(self):
        return 1

    def get_node_ids(self):
        return []

    async def save_weights_for_sampler(self):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Trainer(trainer_module.RayPPOTrainer):
    """SkyRL's, whose workers are stubs, and whose update is noted and does nothing."""

    events = ()

    def build_models(self, *kinds):
        self.dispatch = Workers()

    def fwd_logprobs_values_reward(self, training_input):
        zeros = torch.zeros(training_input["response_mask"].shape)
        training_input["action_log_probs"] = training_input["base_action_log_probs"] = zeros
        training_input["values"] = None
        return training_input

    def train_critic_and_policy(self, data):
        self.events.append(("update", len(data["sequences"])))
        return {"loss": 0.0}


class Grades:
    """Stands for a generator: completions of one token, graded by a function of prompt, repetition and step."""

    def __init__(self, grade, events, turns=1):
        self.grade, self.events, self.turns = grade, events, turns

    async def generate(self, input_batch):
        phase, step = input_batch["batch_metadata"].training_phase, input_batch["batch_metadata"].global_step
        ids = [trajectory for trajectory in input_batch["trajectory_ids"] for _ in range(self.turns)]
        labels = [extras["label"] for extras in input_batch["env_extras"] for _ in range(self.turns)]
        assert phase == "eval" or labels == [int(trajectory.instance_id) for trajectory in ids]
        graded = [
            self.grade(label, trajectory.repetition_id, step) for label, trajectory in zip(labels, ids, strict=True)
        ]
        self.events.append((f"generate-{phase}", labels[:: self.turns]))
        size = len(ids)
        output = {
            "prompt_token_ids": [[1, 2]] * size,
            "response_ids": [[1]] * size,
            "loss_masks": [[1]] * size,
            "stop_reasons": ["stop"] * size,
            "rollout_metrics": None,
            "rollout_logprobs": None,
            "rewards": [entry["reward"] if isinstance(entry, dict) else entry for entry in graded],
            "env_metrics": [entry if isinstance(entry, dict) else {} for entry in graded],
            "trajectory_ids": ids if self.turns > 1 else None,
        }
        if self.turns > 1:
            output["is_last_step"] = [
                turn == self.turns - 1 for _ in labels[:: self.turns] for turn in range(self.turns)
            ]
        return output


class Tracker:
    """Stands for SkyRL's logs."""

    def __init__(self):
        self.logs = []

    def log(self, entry, step, commit=True):
        self.logs.append((step, dict(entry)))

    def finish(self):
        pass

    def log_exception(self, error, step):
        pass


class Experiment(main_base.BasePPOExp):
    """SkyRL's, on one process and with the stubs above; `grade`, `events` and the like are set by tests."""

    grade, turns, events, trainer_kind = None, 1, (), Trainer

    def get_train_dataset(self):
        return importlib.import_module("skyrl.train.dataset").PromptDataset(
            self.cfg.data.train_data, self.tokenizer, self.cfg.trainer.max_prompt_length, num_workers=0
        )

    def get_eval_dataset(self):
        return Experiment.get_train_dataset(self) if self.cfg.trainer.eval_interval > 0 else None

    def get_inference_client(self):
        return None

    def get_generator(self, cfg, tokenizer, inference_engine_client):
        return Grades(self.grade, self.events, self.turns)

    def get_tracker(self):
        return Tracker()

    def get_trajectory_logger(self):
        return None

    def get_trainer(self, **parts):
        trainer = self.trainer_kind(**parts)
        trainer.events = self.events
        return trainer
