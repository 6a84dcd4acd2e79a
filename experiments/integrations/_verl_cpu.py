"""verl's trainers without a GPU: their loops, data sets, replay buffer, transfer queue and checkpoints are real.

The workers with the model and the rollouts are simulated: the probability of a correct answer depends on the prompt and
the number of updates so far.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib
import json
import pathlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _tiny import make_tokenizer
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config

OUR_OPTIONS = (
    "data.custom_cls.path=pkg://dps_jax.integrations.verl",
    "data.custom_cls.name=SelectedDataset",
    "data.dataloader_num_workers=0",
    "+data.dps_jax.group_size=${actor_rollout_ref.rollout.n}",
)
OUR_V1_OPTIONS = (
    "trainer.v1.sampler.custom_sampler.path=pkg://dps_jax.integrations.verl",
    "trainer.v1.sampler.custom_sampler.name=ObservedReplayBuffer",
)
# An option of verl from 0.9.1 on.
OUR_CALLBACK = "trainer.checkpoint_callback_class=dps_jax.integrations.verl.SelectorCheckpoint"


def make_files(folder: pathlib.Path, num_rows: int = 100) -> None:
    """Writes the sums of two digits as verl's parquet files, and the folder of a model without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", num_rows), ("test", 8)):
        rows = [
            {
                "data_source": "sums",
                "prompt": [{"role": "user", "content": f"{row // 10} + {row % 10} ="}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(row // 10 + row % 10)},
                "extra_info": {"split": split, "index": row},
            }
            for row in range(size)
        ]
        Dataset.from_list(rows).to_parquet(str(folder / f"{split}.parquet"))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder / "model")
    config = Qwen2Config(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1)
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder / "model")


def composed(folder: pathlib.Path, options: Sequence[str]) -> Any:
    """Returns verl's configuration, with options as on its command line."""
    ours = [
        "algorithm.adv_estimator=grpo",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/test.parquet",
        "data.train_batch_size=4",
        "data.max_prompt_length=8",
        "data.max_response_length=8",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "trainer.logger=[console]",
        "trainer.n_gpus_per_node=1",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.total_training_steps=6",
        f"trainer.default_local_dir={folder}/checkpoints",
    ]
    hydra = importlib.import_module("hydra")
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", [*ours, *options])


class Rollouts:
    """Stands in for verl's agent loop: completions of 1 to 6 tokens with rewards, for both trainers."""

    def __init__(self, config: Any, workers: Workers, notice: Callable[..., None], grade: Callable[..., Any]):
        self.config, self.workers, self.notice, self.grade = config, workers, notice, grade

    def _answer(self, row: int, session: int, is_validation: bool) -> dict[str, Any]:
        draws = np.random.default_rng([row, session, self.workers.num_updates, int(is_validation)])
        is_correct = draws.random() < (row * 37 % 101 + self.workers.num_updates) / 120
        score, extra = self.grade(row, session, bool(is_correct))
        return {"length": int(draws.integers(1, 7)), "score": score, "extra": extra}

    def generate_sequences(self, prompts: Any) -> Any:
        """Returns completions to the legacy trainer, or puts them into the transfer queue of the V1 trainer."""
        return self._padded(prompts) if hasattr(prompts, "non_tensor_batch") else self._stored(prompts)

    def _padded(self, prompts: Any) -> Any:
        DataProto = importlib.import_module("verl").DataProto

        is_validation = bool(prompts.meta_info.get("validate"))
        rows = [info["index"] for info in prompts.non_tensor_batch["extra_info"]]
        self.notice("validate" if is_validation else "rollout", rows)
        sessions = [rows[:place].count(row) for place, row in enumerate(rows)]
        answers = [self._answer(row, session, is_validation) for row, session in zip(rows, sessions, strict=True)]
        lengths = torch.tensor([answer["length"] for answer in answers])[:, None]
        mask = (torch.arange(8)[None] < lengths).long()
        questions = torch.tensor([[0, 0, 0, 0, 4 + row // 10, 2, 4 + row % 10, 3] for row in rows])
        attention = torch.cat([(questions > 0).long(), mask], 1)
        scores = torch.zeros(mask.shape)
        scores[torch.arange(len(rows)), lengths[:, 0] - 1] = torch.tensor([float(a["score"]) for a in answers])
        tensors = {
            "prompts": questions,
            "responses": mask * 4,
            "response_mask": mask,
            "input_ids": torch.cat([questions, mask * 4], 1),
            "attention_mask": attention,
            "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
            "rm_scores": scores,
        }
        names = list(answers[0]["extra"])
        arrays = {name: np.array([answer["extra"][name] for answer in answers]) for name in names}
        arrays["__num_turns__"] = np.full(len(rows), 2, np.int32)
        arrays["multi_modal_inputs"] = np.array([{} for _ in rows], dtype=object)
        timing = {} if is_validation else {"agent_loop/generate_sequences/mean": 0.0}
        return DataProto.from_dict(tensors, arrays, {"reward_extra_keys": names, "timing": timing})

    def _stored(self, prompts: Any) -> None:
        transfer_queue = importlib.import_module("transfer_queue")
        agent_loop = importlib.import_module("verl.experimental.agent_loop.agent_loop")
        list_of_dict_to_tensordict = importlib.import_module("verl.utils.tensordict_utils").list_of_dict_to_tensordict

        is_validation, step = "validate" in prompts, int(_plain(prompts["global_steps"]))
        partition = "val" if is_validation else "train"
        num_sessions = 1 if is_validation else self.config.actor_rollout_ref.rollout.n
        infos, names = [_plain(info) for info in prompts["extra_info"]], list(prompts["uid"])
        self.notice(
            "validate" if is_validation else "rollout", [i["index"] for i in infos for _ in range(num_sessions)]
        )
        for place, (info, name) in enumerate(zip(infos, names, strict=True)):
            row, fields, keys, tags = info["index"], [], [], []
            for session in range(num_sessions):
                answer = self._answer(row, session, is_validation)
                if answer["score"] is None:  # the rollout failed
                    continue
                output = agent_loop.AgentLoopOutput(
                    prompt_ids=[4 + row // 10, 2, 4 + row % 10, 3],
                    response_ids=[4] * answer["length"],
                    response_mask=[1] * answer["length"],
                    response_logprobs=[0.0] * answer["length"],
                    reward_score=answer["score"],
                    num_turns=2,
                    metrics=agent_loop.AgentLoopMetrics(),
                    extra_fields={"reward_extra_info": answer["extra"]},
                ).as_dict()
                tokens = torch.cat([output["prompts"], output["responses"]])
                given = {key: _plain(prompts[key][place]) for key in ("data_source", "reward_model", "extra_info")}
                more = {
                    "uid": name,
                    "session_id": session,
                    "input_ids": tokens,
                    "position_ids": torch.arange(len(tokens)),
                }
                fields.append(output | given | more | {"loss_mask": output["response_mask"], "multi_modal_inputs": {}})
                keys.append(f"{name}_{session}_0")
                lengths = {"prompt_len": 4, "response_len": answer["length"], "seq_len": len(tokens)}
                steps = {"global_steps": step, "min_global_steps": step - 1, "max_global_steps": step - 1}
                tags.append({"status": "success"} | lengths | steps)
            if keys:
                stored = list_of_dict_to_tensordict(fields)
                transfer_queue.kv_batch_put(keys=keys, fields=stored, tags=tags, partition_id=partition)
            status = "finished" if len(keys) == num_sessions else "failure"
            transfer_queue.kv_put(key=name, partition_id=partition, tag={"status": status})


class Workers:
    """Stands in for the worker group with the model; its only state is the number of updates."""

    def __init__(self, notice: Callable[..., None]):
        self.notice, self.num_updates = notice, 0
        self._dispatch_info = {"actor": [0, 1]}  # two ranks: balance_batch reorders rows

    def _query_dispatch_info(self, role: str) -> list[int]:
        return self._dispatch_info[role]

    def compute_log_prob(self, batch: Any) -> Any:
        """Stores log-probabilities that are all the same, for the V1 trainer."""
        transfer_queue = importlib.import_module("transfer_queue")
        get_tensordict = importlib.import_module("verl.utils.tensordict_utils").get_tensordict

        place = {"keys": batch.keys, "partition_id": batch.partition_id}
        stored = transfer_queue.kv_batch_get(**place, select_fields=["input_ids"])
        zeros = torch.zeros_like(stored["input_ids"], dtype=torch.float32)
        transfer_queue.kv_batch_put(**place, fields=get_tensordict({"entropy": zeros, "log_probs": zeros.clone()}))
        return batch

    def update_actor(self, batch: Any) -> Any:
        """Records an update of the V1 trainer, and its rows."""
        transfer_queue = importlib.import_module("transfer_queue")

        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")]
        stored = transfer_queue.kv_batch_get(keys=keys, partition_id="train", select_fields=["extra_info"])
        return {"metrics": self.update([_plain(info)["index"] for info in stored["extra_info"]])}

    def update(self, rows: list[int]) -> dict[str, Any]:
        """Records an update, and returns its metrics."""
        self.num_updates += 1
        self.notice("update", rows)
        return {"mfu": 0.0, "loss": [0.0]}

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes the number of updates."""
        pathlib.Path(local_path).mkdir(parents=True)
        (pathlib.Path(local_path) / "updates.json").write_text(json.dumps(self.num_updates))
        self.notice("save", self.num_updates)

    def load_checkpoint(self, local_path: str, **kwargs: Any) -> None:
        """Reads the number of updates."""
        self.num_updates = json.loads((pathlib.Path(local_path) / "updates.json").read_text())


def of_the_reward(row: int, session: int, is_correct: bool) -> tuple[Any, dict[str, Any]]:
    """Returns the score and `reward_extra_info` of a completion: the default `grade` of the functions below."""
    return float(is_correct), {"acc": is_correct}


def train_legacy(config: Any, notice: Callable[..., None], grade: Callable[..., Any] = of_the_reward) -> Any:
    """Runs RayPPOTrainer and returns it."""
    DataProto = importlib.import_module("verl").DataProto
    ray_trainer = importlib.import_module("verl.trainer.ppo.ray_trainer")
    utils = importlib.import_module("verl.trainer.ppo.utils")

    class Trainer(ray_trainer.RayPPOTrainer):
        # Overridden because releases differ in how they pass batches to the workers.
        def _compute_old_log_prob(self, batch: Any) -> Any:
            zeros = torch.zeros(batch.batch["responses"].shape)
            return DataProto.from_dict({"old_log_probs": zeros, "entropys": zeros.clone()}), 0.0

        def _update_actor(self, batch: Any) -> Any:
            metrics = self.actor_rollout_wg.update([info["index"] for info in batch.non_tensor_batch["extra_info"]])
            return DataProto.from_single_dict({}, {"metrics": metrics})

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    # Before 0.9, the functions that build data sets are in another module.
    builders = utils if hasattr(utils, "create_rl_dataset") else importlib.import_module("verl.trainer.main_ppo")
    files = (config.data.train_files, config.data.val_files)
    train_set, val_set = (builders.create_rl_dataset(paths, config.data, tokenizer, None) for paths in files)
    trainer = Trainer(
        config,
        tokenizer,
        role_worker_mapping={utils.Role.ActorRollout: object},
        resource_pool_manager=SimpleNamespace(get_n_gpus=lambda: 1),
        train_dataset=train_set,
        val_dataset=val_set,
        train_sampler=builders.create_rl_sampler(config.data, train_set),
        device_name="cpu",
    )
    trainer.actor_rollout_wg = Workers(notice)
    trainer.checkpoint_manager = _Replicas()
    trainer.async_rollout_mode, trainer.val_reward_fn = True, object()  # required by 0.7.0
    trainer.async_rollout_manager = Rollouts(config, trainer.actor_rollout_wg, notice, grade)
    trainer.fit()
    return trainer


def train_v1(config: Any, notice: Callable[..., None], grade: Callable[..., Any] = of_the_reward) -> Any:
    """Runs the trainer class of `trainer.v1.trainer_mode` and returns it; the transfer queue must be running."""
    get_trainer_cls = importlib.import_module("verl.trainer.ppo.v1").get_trainer_cls

    class Trainer(get_trainer_cls(config.trainer.v1.trainer_mode)):
        def _setup(self) -> None:
            self._init_tokenizer()
            self._init_dataloader()
            self._init_dump_executor()
            self.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
            self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[object()])
            self.actor_rollout_wg = Workers(notice)
            self.checkpoint_manager = _Replicas()
            self._load_checkpoint()

    trainer = Trainer(config)
    trainer.init()
    trainer.fit(Rollouts(config, trainer.actor_rollout_wg, notice, grade))
    return trainer


class _Replicas:
    """Stands in for the inference engines."""

    def update_weights(self, *args: Any, **kwargs: Any) -> None: ...

    def sleep_replicas(self) -> None: ...


def _plain(value: Any) -> Any:
    return getattr(value, "data", value)
