"""TRL's half of `benchmarks/peer_trl.py`, which starts it in TRL's own environment.

    python benchmarks/peer_trl_steps.py FOLDER gradient|steps

FOLDER holds `settings.json`, `problems.jsonl`, the base model, `adapter/` and `responses.pt`.
`gradient` writes `trl_gradient.pt`: that of GRPOTrainer's own loss on the responses. `steps`
trains, and after each step says on stdout what `meter.Meter` says.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from meter import Meter
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

BOX = re.compile(r"\\boxed\{(-?\d+)\}")


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1, -0.5 and -1 as the project's rule has them, for whole numbers."""
    found = [BOX.findall(completion) for completion in completions]
    return [
        -1.0 if len(boxes) != 1 else 1.0 if boxes[0] == right else -0.5
        for boxes, right in zip(found, answer, strict=True)
    ]


class Steps(TrainerCallback):
    def __init__(self, meter: Meter):
        self.meter, self.length = meter, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The log comes after it; its length is that of the step before."""
        self.meter.step(self.length)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.length = logs.get("completions/mean_length", self.length)


def trainer(folder: Path, meter: Meter | None = None) -> GRPOTrainer:
    settings = json.loads((folder / "settings.json").read_text())
    rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    prompts, group = settings["prompts_per_step"], settings["group_size"]
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=settings["trl_rows"],
        gradient_accumulation_steps=prompts * group // settings["trl_rows"],
        num_generations=group,
        max_completion_length=settings["max_new_tokens"],
        temperature=1.0,
        beta=settings["kl_weight"],
        use_bias_correction_kl=False,
        loss_type="grpo",
        epsilon=0.2,
        learning_rate=settings["learning_rate"],
        max_grad_norm=1.0,
        max_steps=len(rows) // prompts,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    made = GRPOTrainer(
        model=settings["model"],
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig.from_pretrained(str(folder / "adapter")),
        callbacks=[Steps(meter)] if meter else [],
    )
    set_peft_model_state_dict(made.model, load_peft_weights(str(folder / "adapter")))
    return made


def gradient(folder: Path) -> None:
    made = trainer(folder)
    given = torch.load(folder / "responses.pt")
    inputs = {
        "prompt_ids": given["prompt_ids"],
        "prompt_mask": given["prompt_mask"].long(),
        "completion_ids": given["completion_ids"],
        "completion_mask": given["completion_mask"].long(),
        "advantages": given["advantages"],
        "num_items_in_batch": given["completion_mask"].sum(),
    }
    model = made.model.train()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad(), model.disable_adapter():
        width = inputs["completion_ids"].shape[1]
        known = made._get_per_token_logps_and_entropies(model, ids, mask, width)
    inputs["ref_per_token_logps"] = known[0]
    made.current_gradient_accumulation_steps = 1
    made.compute_loss(model, inputs).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.save(trained, folder / "trl_gradient.pt")


if __name__ == "__main__":
    if sys.argv[2] == "gradient":
        gradient(Path(sys.argv[1]))
    else:
        trainer(Path(sys.argv[1]), Meter()).train()
