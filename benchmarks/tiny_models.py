"""Configs of tiny random models, one of every architecture that can be had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from capo_ds.config import Config, parse_config

VOCABULARY = 199
PROMPTS = [[5, 17, 33, 90, 2, 41, 77, 8, 120, 9, 64, 15, 3], [44, 7, 101, 18, 6, 150, 23, 11, 80]]
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MOE = TEXT | EXPERTS | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
SHARED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = MOE | SHARED | LATENT | {"num_key_value_heads": 4, "first_k_dense_replace": 1}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
INDEXER = {"index_n_heads": 8, "index_head_dim": 16, "index_topk": 8}
NGRAMS = {"ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 2}
NGRAMS |= {"split_ngram_parts": 1, "heads_per_ngram": 2, "ple_layer_ids": [1]}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4}
LONG |= {"long_factor": [4.0] * 4, "original_max_position_embeddings": 64, "factor": 4.0}


@dataclass(frozen=True)
class Tiny:
    """A config of a model type; of composite ones, `settings` has the nested configs."""

    kind: str  # dense, experts, latent, hybrid, composite
    settings: dict
    model_type: str | None = None


MODELS: dict[str, Tiny] = {
    # Dense
    "llama": Tiny("dense", TEXT),
    "qwen2": Tiny("dense", TEXT),
    "qwen3": Tiny("dense", TEXT | {"head_dim": 16}),
    "mistral": Tiny("dense", TEXT | {"sliding_window": 8}),
    "ministral": Tiny("dense", TEXT | {"head_dim": 16, "sliding_window": 8}),
    "gemma": Tiny("dense", TEXT | {"head_dim": 16}),
    "gemma2": Tiny("dense", TEXT | {"head_dim": 16, "sliding_window": 8}),
    "gemma3_text": Tiny("dense", TEXT | {"head_dim": 16, "sliding_window": 8}),
    "gpt2": Tiny("dense", TEXT | OLD),
    "gpt_neox": Tiny("dense", TEXT),
    "gpt_neo": Tiny(
        "dense",
        {k: v for k, v in TEXT.items() if k != "num_hidden_layers"}
        | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gptj": Tiny("dense", TEXT | OLD | {"rotary_dim": 4}),
    "gpt_bigcode": Tiny("dense", TEXT | OLD),
    "codegen": Tiny("dense", TEXT | OLD | {"rotary_dim": 4}),
    "bloom": Tiny("dense", TEXT | {"n_layer": 2, "n_head": 4}),
    "opt": Tiny("dense", TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": Tiny("dense", TEXT),
    "mpt": Tiny(
        "dense",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
        | {"vocab_size": VOCABULARY},
    ),
    "phi": Tiny("dense", TEXT | {"num_key_value_heads": 4}),
    "phi3": Tiny("dense", TEXT | {"rope_parameters": LONG | {"partial_rotary_factor": 1.0}}),
    "stablelm": Tiny("dense", TEXT),
    "starcoder2": Tiny("dense", TEXT),
    "cohere": Tiny("dense", TEXT),
    "cohere2": Tiny("dense", TEXT | {"sliding_window": 8, "head_dim": 8}),
    "granite": Tiny("dense", TEXT | {"logits_scaling": 8.0}),
    "glm": Tiny("dense", TEXT | {"head_dim": 8}),
    "glm4": Tiny("dense", TEXT | {"head_dim": 8}),
    "olmo": Tiny("dense", TEXT),
    "olmo2": Tiny("dense", TEXT),
    "olmo3": Tiny("dense", TEXT | {"sliding_window": 8}),
    "nemotron": Tiny("dense", TEXT | {"head_dim": 8}),
    "persimmon": Tiny("dense", TEXT),
    "smollm3": Tiny("dense", TEXT),
    "exaone4": Tiny("dense", TEXT | {"sliding_window": 8}),
    "seed_oss": Tiny("dense", TEXT | {"head_dim": 8}),
    "apertus": Tiny("dense", TEXT),
    "arcee": Tiny("dense", TEXT),
    "helium": Tiny("dense", TEXT | {"head_dim": 8}),
    "ernie4_5": Tiny("dense", TEXT | {"head_dim": 8}),
    "hunyuan_v1_dense": Tiny("dense", TEXT | {"head_dim": 8}),
    "diffllama": Tiny("dense", TEXT | {"head_dim": 8}),
    "nanochat": Tiny("dense", TEXT),
    "bitnet": Tiny("dense", TEXT),
    "cwm": Tiny("dense", TEXT | {"head_dim": 8, "sliding_window": 8}),
    "inkling_text": Tiny("dense", TEXT | {"head_dim": 8}),
    "jais2": Tiny("dense", TEXT | {"head_dim": 8}),
    "ministral3": Tiny("dense", TEXT | {"head_dim": 8}),
    "modernbert-decoder": Tiny("dense", TEXT | {"local_attention": 8}),
    "vaultgemma": Tiny("dense", TEXT | {"head_dim": 8, "sliding_window": 8}),
    # Mixtures of experts
    "mixtral": Tiny("experts", MOE | {"router_jitter_noise": 0.1}),
    "phimoe": Tiny("experts", MOE | {"router_jitter_noise": 0.1, "input_jitter_noise": 0.1}),
    "qwen2_moe": Tiny("experts", MOE),
    "qwen3_moe": Tiny("experts", MOE | {"head_dim": 16}),
    "olmoe": Tiny("experts", MOE),
    "flex_olmo": Tiny("experts", MOE),
    "granitemoe": Tiny("experts", MOE),
    "gpt_oss": Tiny(
        "experts",
        MOE
        | {
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default"} | {"rope_theta": 1e4},
        },
    ),
    "dbrx": Tiny(
        "experts",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": VOCABULARY}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}}
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    ),
    "jetmoe": Tiny("experts", MOE | {"kv_channels": 8, "num_key_value_heads": 2}),
    "dots1": Tiny("experts", MOE | SHARED | {"head_dim": 8, "first_k_dense_replace": 1}),
    "ernie4_5_moe": Tiny(
        "experts", MOE | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}
    ),
    "glm4_moe": Tiny("experts", MOE | SHARED | {"head_dim": 8, "first_k_dense_replace": 1}),
    "hunyuan_v1_moe": Tiny("experts", MOE | {"head_dim": 8, "moe_topk": 2}),
    "llama4_text": Tiny(
        "experts",
        MOE
        | {"head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 8}
        | {"num_experts_per_tok": 1},
    ),
    "minimax_m2": Tiny("experts", MOE | {"head_dim": 16}),
    "minimax_m3_vl_text": Tiny("experts", MOE | SHARED | {"head_dim": 16}),
    "afmoe": Tiny("experts", MOE | {"head_dim": 8, "sliding_window": 8, "num_dense_layers": 1}),
    "cohere2_moe": Tiny("experts", MOE | {"head_dim": 8, "sliding_window": 8}),
    "exaone_moe": Tiny("experts", MOE | SHARED | {"head_dim": 8, "sliding_window": 8}),
    "granitemoeshared": Tiny("experts", MOE | {"shared_intermediate_size": 24}),
    "hy_v3": Tiny("experts", MOE | SHARED | {"head_dim": 8, "first_k_dense_replace": 1}),
    "laguna": Tiny("experts", MOE | SHARED | {"head_dim": 8, "sliding_window": 8}),
    "mellum": Tiny("experts", MOE | {"head_dim": 8, "sliding_window": 8}),
    "mimo_v2_flash": Tiny(
        "experts", MOE | SHARED | {"head_dim": 8, "v_head_dim": 8, "sliding_window": 8}
    ),
    "solar_open": Tiny("experts", MOE | SHARED | {"head_dim": 8, "first_k_dense_replace": 1}),
    # Latent attention
    "deepseek_v2": Tiny("latent", DEEPSEEK | {"q_lora_rank": None}),
    "deepseek_v3": Tiny("latent", DEEPSEEK | {"q_lora_rank": 16}),
    "minicpm3": Tiny("latent", TEXT | LATENT | {"q_lora_rank": 16, "num_key_value_heads": 4}),
    "youtu": Tiny("latent", DEEPSEEK | {"q_lora_rank": 16}),
    "glm4_moe_lite": Tiny("latent", DEEPSEEK | {"q_lora_rank": 16}),
    "deepseek_v32": Tiny("latent", DEEPSEEK | INDEXER | {"q_lora_rank": 16}),
    "deepseek_v4": Tiny(
        "latent",
        DEEPSEEK
        | INDEXER
        | {"q_lora_rank": 16}
        | {"layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"]}
        | {"compress_rates": {"heavily_compressed_attention": 8, "compressed_sparse_attention": 4}},
    ),
    "glm_moe_dsa": Tiny("latent", DEEPSEEK | INDEXER | {"q_lora_rank": 16}),
    "longcat_flash": Tiny(
        "latent",
        DEEPSEEK
        | {"q_lora_rank": 16, "head_dim": 8, "num_layers": 2, "zero_expert_num": 2, "moe_topk": 2}
        | {"expert_ffn_hidden_size": 24, "ffn_hidden_size": 48},
    ),
    # Hybrids and state spaces
    "qwen3_next": Tiny("hybrid", MOE | DELTA),
    "qwen3_5_text": Tiny("hybrid", TEXT | DELTA),
    "qwen3_5_moe_text": Tiny("hybrid", MOE | DELTA),
    "olmo_hybrid": Tiny("hybrid", TEXT | DELTA),
    "kimi_linear": Tiny("hybrid", DEEPSEEK | DELTA),
    "lfm2": Tiny("hybrid", TEXT | {"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": Tiny(
        "hybrid", MOE | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
    ),
    "jamba": Tiny(
        "hybrid",
        MOE
        | MAMBA
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
        | {"mamba_dt_rank": 4},
    ),
    "bamba": Tiny("hybrid", TEXT | MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": Tiny("hybrid", TEXT | MAMBA | {"mamba_d_ssm": 64, "head_dim": 8}),
    "granitemoehybrid": Tiny(
        "hybrid",
        MOE | MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    ),
    "zamba2": Tiny(
        "hybrid",
        TEXT
        | MAMBA
        | {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
        | {"mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_headdim": 16, "chunk_size": 8}
        | {"use_mamba_kernels": False, "attention_head_dim": 16, "num_mem_blocks": 1},
    ),
    "nemotron_h": Tiny(
        "hybrid",
        MOE
        | {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1}
        | {"chunk_size": 8, "head_dim": 8, "layers_block_type": ["mamba", "attention"]},
    ),
    "minimax": Tiny(
        "hybrid",
        MOE
        | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
        | {"block_size": 4},
    ),
    "mamba": Tiny("hybrid", TEXT | {"state_size": 8, "time_step_rank": 4}),
    "mamba2": Tiny(
        "hybrid",
        TEXT
        | {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1}
        | {"chunk_size": 8, "expand": 2},
    ),
    "falcon_mamba": Tiny("hybrid", TEXT | {"state_size": 8, "time_step_rank": 4}),
    "recurrent_gemma": Tiny(
        "hybrid",
        TEXT
        | {"lru_width": 32, "attention_window_size": 64, "num_hidden_layers": 3}
        | {"head_dim": 8, "num_key_value_heads": 1},
    ),
    "xlstm": Tiny(
        "hybrid",
        TEXT
        | {"hidden_size": 64, "num_heads": 4, "num_blocks": 2, "chunk_size": 16}
        | {"qk_dim_factor": 1.0, "mode": "inference"},
    ),
    "qwen4_exp_text": Tiny(
        "hybrid",
        MOE
        | DELTA
        | NGRAMS
        | {"hc_count": 2, "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1}
        | {"indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 2},
    ),
    "zaya": Tiny(
        "hybrid", MOE | {"head_dim": 8, "num_experts_per_tok": 1, "router_hidden_size": 16}
    ),
    "rwkv": Tiny("hybrid", TEXT | {"attention_hidden_size": 32, "context_length": 256}),
    # Composite: a language model and towers beside it
    "gemma3": Tiny(
        "composite",
        {"text_config": TEXT | {"head_dim": 16, "sliding_window": 8, "model_type": "gemma3_text"}}
        | {"vision_config": VISION | {"model_type": "siglip_vision_model"}},
    ),
    "gemma3n_text": Tiny(
        "composite",
        TEXT
        | {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 4, "laurel_rank": 4}
        | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2}
        | {"vocab_size_per_layer_input": VOCABULARY, "activation_sparsity_pattern": [0.0] * 4}
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "intermediate_size": [48] * 4,
        },
    ),
    "gemma4_text": Tiny(
        "composite",
        TEXT
        | {"head_dim": 8, "global_head_dim": 16, "sliding_window": 8}
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
        | {"num_kv_shared_layers": 0},
    ),
    "llama4": Tiny(
        "composite",
        {
            "text_config": MOE
            | {"head_dim": 8, "intermediate_size_mlp": 48}
            | {"attention_chunk_size": 8, "num_experts_per_tok": 1}
        }
        | {
            "vision_config": VISION
            | {"vision_output_dim": 16, "projector_input_dim": 16}
            | {"projector_output_dim": 16}
        },
    ),
    "qwen3_5": Tiny(
        "composite",
        {"text_config": TEXT | DELTA}
        | {
            "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16}
            | {"num_heads": 2, "out_hidden_size": 32}
        },
    ),
}


def build(name: str, folder: Path) -> None:
    """Save a tiny random model of the type."""
    torch.manual_seed(0)
    tiny = MODELS[name]
    config = AutoConfig.for_model(tiny.model_type or name, **tiny.settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # wide enough for logits that are far from uniform
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)


def settings(folder: str, **model: object) -> Config:
    return parse_config(
        {
            "model": {"path": folder, "lora_rank": 2, "lora_alpha": 4} | model,
            "rollout": {"group_size": 2, "max_prompt_tokens": 16},
        }
    )
