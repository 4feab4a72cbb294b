"""What a run needs of each rank's memory, and which store of gradients fits into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PretrainedConfig

from capo_ds.architecture import text_config
from capo_ds.capacity import NOTHING, Capacity, measure_capacity, readable
from capo_ds.config import Config, ConfigError
from capo_ds.distributed import comm, launch
from capo_ds.distributed.deepspeed_json import read_deepspeed_json, zero_stage
from capo_ds.distributed.zero import parameter_count
from capo_ds.gradients.store import held_samples
from capo_ds.log_probs import LOGIT_CHUNK_TOKENS, WHOLE_LOGITS
from capo_ds.parts import built_in, names
from capo_ds.quantization import is_four_bit
from capo_ds.rollout.base import SamplerBytes, SamplingShapes
from capo_ds.rollout.choose import sampler_bytes, shares_policy

WEIGHTS, PART = "weights", "weights, this rank's part"
USABLE = 0.9  # of the memory: the rest goes to fragments, and to what is not estimated
TRAINED_BYTES = 5 * 4  # a LoRA factor, its gradient, ZeRO's bucket, AdamW's two moments: float32
# Numbers of weights that ZeRO 3 keeps gathered: DeepSpeed's key, and its default.
LIVE_KEY, LIVE = "stage3_max_live_parameters", 10**9
# Numbers that a layer keeps of a token for its backward pass, by unit of the model's width and of
# its MLP's; without attention scores, which fused attention does not keep. Counted in Qwen2 with
# factors on all linear layers, the norms' float32 copies included; on attention alone, 8 and 3.
KEPT_OF_WIDTH, KEPT_OF_MLP = 9, 4


FEWER = "raise objective.minibatches, or lower gradients.sketch_dim"
SMALLER = (
    "set gradients.sketch to sparse (recompute then keeps sketches alone), or raise "
    "objective.minibatches"
)
UNQUANTISED = (
    "weights in 4 bits are whole on each rank while they load; those in model.dtype come in parts "
    "(model.load_in_4bit: false, or the unquantised model)"
)


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated bytes on one rank by purpose; in brackets, the key that lowers it.

    needs: on the device, whatever the store. stores: on the device and on the host, for each store
    that these settings allow, the fastest first. loading: on the device, before all that.
    """

    needs: dict[str, int]
    stores: dict[str, Capacity]
    capacity: Capacity
    loading: int = 0

    @property
    def needed(self) -> int:
        return sum(self.needs.values())

    def fits(self, store: str) -> bool:
        """Whether the run fits with this store."""
        used, there = self.stores[store], self.capacity
        on_host = there.shared or used.host <= USABLE * there.host
        return self.on_device(used) <= USABLE * there.device and on_host

    def on_device(self, kept: Capacity) -> int:
        """The most there ever is, if gradients are kept so."""
        return max(self.loading, self.needed + kept.device + kept.host * self.capacity.shared)

    def choose(self, wanted: str) -> str:
        """The wanted store, or for `auto` the fastest that fits (else the smallest, recompute).

        Raises:
            ConfigError: for `auto`, if none fits and there are no sketches to recompute from.
        """
        if wanted != "auto" or not self.stores:
            return wanted
        for store in self.stores:
            if store == "recompute" or self.fits(store):
                return store
        raise ConfigError(
            f"gradients.store: auto finds no store that fits: {self.describe_stores()}; {SMALLER}"
        )

    def check(self, store: str) -> None:
        """Whether the run fits with this store. Raises `ConfigError` with what it needs, of what
        there is, and what would lower it."""
        room = USABLE * self.capacity.device
        if self.fits(store) if self.stores else self.on_device(NOTHING) <= room:
            return
        if self.loading > room:
            remedy = UNQUANTISED
        elif self.needed <= room:
            others = [name for name in self.stores if self.fits(name)]
            least = FEWER if "recompute" in self.stores else SMALLER
            remedy = f"set gradients.store to {others[0]}" if others else least
        else:
            largest = max(self.needs, key=lambda name: self.needs[name])
            remedy = f"the most are {largest}, {readable(self.needs[largest])}: {_lower(largest)}"
        raise ConfigError(
            f"does not fit: needs {self._all(store)}, of which {USABLE:.0%} are for use; {remedy}"
        )

    def told(self, store: str) -> str:
        """The whole with this store, of the capacity, and its parts."""
        kept = self.stores.get(store, NOTHING)
        parts = dict(self.needs)
        if self.stores:
            parts[f"gradients (gradients.store: {store}; all: {self.describe_stores()})"] = (
                kept.device + kept.host * self.capacity.shared
            )
        if self.loading > sum(parts.values()):
            parts["before that, as weights in 4 bits load: whole on each rank"] = self.loading
        rows = [f"  {readable(count):>10}  {name}" for name, count in parts.items()]
        return "\n".join([self._all(store), *rows])

    def _all(self, store: str) -> str:
        """What is needed with this store, of the capacity."""
        kept, there = self.stores.get(store, NOTHING), self.capacity
        told = f"{readable(self.on_device(kept))} of {readable(there.device)}"
        if kept.host and not there.shared:
            told += f", and {readable(kept.host)} of {readable(there.host)} on the host"
        return told

    def describe_stores(self) -> str:
        pins = "" if self.capacity.shared else ", pinned by powers of two"
        return ", ".join(
            f"{name} {readable(used.device)}"
            + (f" + {readable(used.host)} on the host{pins}" if used.host else "")
            + ("" if self.fits(name) else " (does not fit)")
            for name, used in self.stores.items()
        )


def _lower(need: str) -> str:
    """What makes it smaller: the key in brackets at its end, but for weights."""
    if need == WEIGHTS:
        return "share them out (deepspeed: ds_configs/zero3.json), or set model.load_in_4bit"
    if need == PART:
        return "take more machines"
    key = need.rpartition("(")[2].rstrip(")")
    if key.startswith("rollout.sampler"):
        return "choose another rollout.sampler"
    return f"lower {key}"


def plan_memory(config: Config, policy: PeftModel, ranks: int, capacity: Capacity) -> MemoryPlan:
    """The plan for the run's shapes, if all responses are as long as they may be."""
    trainable = sum(parameter_count(p) for p in policy.parameters() if p.requires_grad)
    samples = -(-config.rollout.prompts_per_step // ranks) * config.rollout.group_size
    sampler = sampler_bytes(config, _sampling_shapes(config, policy, samples, capacity.shared))
    needs = {
        **_weights(config, policy, ranks),
        "LoRA and optimizer (model.lora_rank)": trainable * TRAINED_BYTES,
        **_passing(config, _training_pass(config, policy, samples), sampler),
    }
    if sampler.always:
        needs[f"the sampler ({sampler.key or 'rollout.sampler'})"] = sampler.always
    per_sample = config.uses_per_sample_gradients
    stores = _stores(config, samples, trainable, capacity.shared) if per_sample else {}
    return MemoryPlan(needs, stores, capacity, _loading(config, policy))


def _sampling_shapes(
    config: Config, policy: PeftModel, samples: int, on_cpu: bool
) -> SamplingShapes:
    """Of a rank that samples so many responses in a step."""
    architecture, rollout = text_config(policy.config), config.rollout
    heads, head_size = cache_heads(architecture)
    sampled, tokens = min(samples, rollout.batch_size), _row_tokens(config)
    layers, number = architecture.num_hidden_layers, _number_bytes(config)
    return SamplingShapes(
        config,
        sampled,
        tokens,
        cache=sampled * tokens * layers * 2 * heads * head_size * number,
        vocabulary=architecture.vocab_size,
        weights=sum(_frozen_bytes(policy)),
        on_cpu=on_cpu,
        layer=_kept_of_a_token(config, architecture),
    )


def _training_pass(config: Config, policy: PeftModel, samples: int) -> int:
    """Bytes of the activations and logits of a micro-batch, of so many samples at most."""
    architecture, train, tokens = text_config(policy.config), config.train, _row_tokens(config)
    positions = min(samples, train.micro_batch_size) * tokens
    if train.micro_batch_tokens is not None:
        positions = min(samples * tokens, max(train.micro_batch_tokens, tokens))
    logit_rows = LOGIT_CHUNK_TOKENS
    if getattr(policy, WHOLE_LOGITS, False):
        logit_rows += positions
    layers = architecture.num_hidden_layers
    kept = _kept_of_a_token(config, architecture)
    if config.model.gradient_checkpointing:  # one layer's, and what goes into each
        kept += _number_bytes(config) * architecture.hidden_size * layers
    else:
        kept *= layers
    return positions * kept + 2 * 4 * logit_rows * architecture.vocab_size


def _row_tokens(config: Config) -> int:
    """The longest row."""
    return config.rollout.max_prompt_tokens + config.rollout.max_new_tokens


def _number_bytes(config: Config) -> int:
    return getattr(torch, config.model.dtype).itemsize


def _frozen_bytes(policy: PeftModel) -> list[int]:
    """Of each of the base's weights."""
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    return [parameter_count(p) * p.element_size() for p in frozen]


def _kept_of_a_token(config: Config, architecture: PretrainedConfig) -> int:
    """Bytes that a layer keeps of a token for its backward pass."""
    numbers = KEPT_OF_WIDTH * architecture.hidden_size + KEPT_OF_MLP * mlp_width(architecture)
    return _number_bytes(config) * numbers


def _stores(config: Config, samples: int, trainable: int, shared: bool) -> dict[str, Capacity]:
    """What each store takes of the per-sample gradients of an update."""
    # Mini-batches are drawn at random: one rank may hold most of one.
    in_update = -(-config.rollout.prompts_per_step // config.objective.minibatches)
    per_update = min(samples, in_update * config.rollout.group_size)
    gradients = per_update * trainable * getattr(torch, config.gradients.dtype).itemsize
    sketched = config.gradients.sketch != "none"
    sketches = per_update * config.gradients.sketch_dim * 4 if sketched else 0
    stores = {
        "device": Capacity(gradients + sketches, 0),
        "host": Capacity(sketches, gradients if shared else pinned(gradients)),
    }
    if sketched:
        waiting = held_samples(per_update, trainable) if sketched_together(config) else 0
        stores["recompute"] = Capacity(sketches + 4 * trainable * (1 + waiting), 0)
    return stores


def _passing(config: Config, training: int, sampler: SamplerBytes) -> dict[str, int]:
    """What training and sampling take in turns: the larger of the two."""
    if sampler.sampling > training:
        which, key = "sampling", sampler.while_sampling or "rollout.batch_size"
    else:
        which = "training"
        key = f"train.micro_batch_{'size' if config.train.micro_batch_tokens is None else 'tokens'}"
        if not config.model.gradient_checkpointing:
            key += ", or set model.gradient_checkpointing"
    told = f"the larger of training and sampling: {which} ({key})"
    return {told: max(training, sampler.sampling)}


def _weights(config: Config, policy: PeftModel, ranks: int) -> dict[str, int]:
    """Of the base. At ZeRO 3 a rank's part, and what is gathered at a time: what DeepSpeed may keep
    for the next pass, with the largest tensor; or all, where the policy itself samples."""
    sizes = _frozen_bytes(policy)
    settings = read_deepspeed_json(config.deepspeed)
    if zero_stage(settings) < 3:
        return {WEIGHTS: sum(sizes)}
    part, key, gathered = sum(sizes) // ranks, "rollout.sampler", sum(sizes)
    if not shares_policy(config):
        live = settings["zero_optimization"].get(LIVE_KEY, LIVE) * _number_bytes(config)
        key, gathered = LIVE_KEY, min(gathered, live + max(sizes))
    return {PART: part, f"weights gathered ({key})": gathered}


def _loading(config: Config, policy: PeftModel) -> int:
    """At ZeRO 3, of weights in 4 bits: they are shared out by the engine, others as they come."""
    if zero_stage(read_deepspeed_json(config.deepspeed)) < 3 or not is_four_bit(policy):
        return 0
    return sum(parameter_count(p) * p.element_size() for p in policy.parameters())


def sketched_together(config: Config) -> bool:
    """Whether gradients may wait to be sketched together, as where the map is dense; of a user's
    sketch it is not known."""
    name = config.gradients.sketch
    return name not in names("sketch") or built_in("sketch", name).for_many


def pinned(count: int) -> int:
    """Bytes of host memory that torch takes to pin so many: a power of two."""
    return 1 << (count - 1).bit_length() if count else 0


def mlp_width(architecture: PretrainedConfig) -> int:
    """Units of a layer's MLP that a token passes through; of experts, those it is routed to and
    those it shares. Where layers differ the largest, where it is not told four times the width."""

    def named(*names: str) -> int:
        values = [getattr(architecture, name, None) for name in names]
        flat = [v for v in values if isinstance(v, int)]
        return max(flat + [max(v) for v in values if isinstance(v, list | tuple) and v], default=0)

    dense = named("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    routed = named("num_experts_per_tok", "top_k_experts", "moe_k")
    expert = named("moe_intermediate_size", "expert_ffn_hidden_size") or dense
    shared = named("shared_expert_intermediate_size") or named("n_shared_experts") * expert
    return max(dense, routed * expert + shared) or 4 * architecture.hidden_size


def cache_heads(architecture: PretrainedConfig) -> tuple[int, int]:
    """Number and size of the heads that a layer keeps keys of: the largest, where layers differ,
    and 0 for models without attention, whose states do not grow."""

    def largest(*names: str) -> int:
        values = [getattr(architecture, name, None) or 0 for name in names]
        return max(max(v) if isinstance(v, list | tuple) else v for v in values)

    attention = largest("num_attention_heads")
    if not attention:
        return 0, 0
    heads = largest("num_key_value_heads", "num_global_key_value_heads") or attention
    size = largest("head_dim", "global_head_dim") or architecture.hidden_size // attention
    return heads, size


def plan_on_all_ranks(config: Config, policy: PeftModel) -> MemoryPlan:
    """The plan for what every rank has; the same on all of them (collective)."""
    capacity = measure_capacity(comm.device(), launch.ranks_here())
    capacity = Capacity.least(comm.gather(capacity))
    return plan_memory(config, policy, comm.world_size(), capacity)
