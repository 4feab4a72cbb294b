"""TRL's half of `benchmarks/peer_trl.py`, which starts it in TRL's own environment.

    python benchmarks/peer_trl_steps.py FOLDER gradient|steps

FOLDER holds `settings.json`, `problems.jsonl`, the base model, `adapter/` and `responses.pt`.
`gradient` writes `trl_gradients.pt`: those of GRPOTrainer's own loss on the responses. `steps`
trains, and after each step says on stdout what `meter.Meter` says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from meter import Meter
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor, nn
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


def from_first_token(mask: Tensor) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A hook that gives a model the positions of the tokens in their rows, padding uncounted."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return lambda _, args, kwargs: (args, kwargs | {"position_ids": positions})


class ExactAngles(nn.Module):
    """Rotary embeddings in the dtype of the model; transformers' own are float32's in any."""

    def __init__(self, frequencies: Tensor):
        super().__init__()
        self.frequencies = frequencies

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * self.frequencies.to(hidden.dtype)).repeat(1, 1, 2)
        return angles.cos(), angles.sin()


class ExactNorm(nn.Module):
    """RMSNorm in the dtype of the model, for the same reason."""

    def __init__(self, norm: Any):
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * (hidden.square().mean(-1, True) + self.epsilon).rsqrt()


def make_exact(model: nn.Module) -> None:
    """Float64 throughout."""
    model.double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child))
            elif type(child).__name__.endswith("RotaryEmbedding"):
                setattr(module, name, ExactAngles(cast(Tensor, child.inv_freq)))


def gradient_of(made: GRPOTrainer, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of TRL's own loss; `given` as `responses.pt` has it."""
    model = made.model.train()
    dtype = next(model.parameters()).dtype
    inputs = {
        "prompt_ids": given["prompt_ids"],
        "prompt_mask": given["prompt_mask"].long(),
        "completion_ids": given["completion_ids"],
        "completion_mask": given["completion_mask"].long(),
        "advantages": given["advantages"].to(dtype),
        "num_items_in_batch": given["completion_mask"].sum(),
    }
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad(), model.disable_adapter():
        width = inputs["completion_ids"].shape[1]
        known = made._get_per_token_logps_and_entropies(model, ids, mask, width)
    inputs["ref_per_token_logps"] = known[0]
    made.current_gradient_accumulation_steps = 1
    model.zero_grad()
    made.compute_loss(model, inputs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def gradients(folder: Path) -> None:
    """As TRL makes it; with positions counted as capo_ds counts them; and in float64."""
    made = trainer(folder)
    given = torch.load(folder / "responses.pt")
    mask = torch.cat([given["prompt_mask"], given["completion_mask"]], 1).long()
    found = {"TRL": gradient_of(made, given)}
    hook = made.model.register_forward_pre_hook(from_first_token(mask), with_kwargs=True)
    found["positions"] = gradient_of(made, given)
    hook.remove()
    make_exact(made.model)
    found["float64"] = gradient_of(made, given)
    torch.save(found, folder / "trl_gradients.pt")


if __name__ == "__main__":
    if sys.argv[2] == "gradient":
        gradients(Path(sys.argv[1]))
    else:
        trainer(Path(sys.argv[1]), Meter()).train()
