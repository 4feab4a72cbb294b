"""What TRL, verl and OpenRLHF call the settings, for those who come from there."""

from __future__ import annotations

# A word with a dot in it is one in that section only: `val_kwargs.n` is not `rollout.n`.
KEYS = {
    "rollout.group_size": "num_generations n n_samples_per_prompt G",
    "rollout.prompts_per_step": "train_batch_size gen_batch_size rollout_batch_size "
    "generation_batch_size",
    "rollout.batch_size": "micro_rollout_batch_size per_device_eval_batch_size val_batch_size "
    "log_prob_micro_batch_size log_prob_micro_batch_size_per_gpu",
    "rollout.max_new_tokens": "max_completion_length max_response_length generate_max_len "
    "max_tokens response_length",
    "rollout.max_prompt_tokens": "max_prompt_length prompt_max_len",
    "rollout.dynamic_sampling": "filter_groups dynamic_filtering max_num_gen_batches",
    "rollout.max_prompt_tokens and rollout.max_new_tokens": "max_model_len max_model_length "
    "vllm_max_model_length max_length max_seq_length max_seq_len max_len cutoff_len",
    "rollout.sampler": "use_vllm vllm_mode rollout.name fast_inference",
    "rollout.server_url": "vllm_server_base_url vllm_server_host vllm_server_port",
    "rollout.timeout": "vllm_server_timeout",
    "rollout.vllm_cache_gib": "gpu_memory_utilization vllm_gpu_memory_utilization",
    "rollout.tensor_parallel": "tensor_model_parallel_size vllm_tensor_parallel_size",
    "rollout.temperature": "temp",
    "rollout.importance_correction": "vllm_importance_sampling_correction rollout_is "
    "rollout_correction vllm_importance_sampling_mode",
    "rollout.importance_cap": "vllm_importance_sampling_cap tis_imp_ratio_cap rollout_is_threshold",
    "rollout.ahead": "max_staleness staleness_threshold max_async_level max_head_offpolicyness "
    "async_level",
    "objective.ratio_to": "use_decoupled_loss bypass_mode bypass_old_logprob_for_rollout",
    "objective.kl_weight": "beta kl_coef kl_loss_coef use_kl_loss init_kl_coef kl kl_beta "
    "use_kl_in_reward",
    "objective.clip_low": "clip_ratio_low epsilon_low",
    "objective.clip_high": "epsilon_high clip_ratio_high eps_clip_high",
    "objective.clip_low and objective.clip_high": "epsilon clip_ratio cliprange eps_clip clip "
    "eps_clip_low_high clip_range",
    "objective.dual_clip": "delta clip_ratio_c dual_clip_c",
    "objective.epochs": "num_iterations ppo_epochs num_ppo_epochs max_epochs",
    "objective.minibatches": "num_mini_batches steps_per_generation",
    "objective.loss_aggregation": "loss_agg_mode",
    "objective.name": "policy_loss loss_mode surrogate loss importance_sampling_level",
    "objective.name and objective.loss_aggregation": "loss_type",
    "objective.baseline": "advantages advantage mean_level",
    "objective.scale_advantages": "scale_rewards norm_adv_by_std_in_grpo whiten_advantages "
    "normalize_advantages std_level normalize_reward",
    "objective.mask_truncated": "mask_truncated_completions overlong_filter",
    "train.micro_batch_size": "per_device_train_batch_size ppo_micro_batch_size "
    "ppo_micro_batch_size_per_gpu micro_train_batch_size",
    "train.micro_batch_tokens": "ppo_max_token_len_per_gpu log_prob_max_token_len_per_gpu "
    "use_dynamic_bsz max_tokens_per_gpu",
    "train.steps": "max_steps total_training_steps max_num_steps num_steps",
    "train.save_every": "save_steps save_freq save_interval save_strategy",
    "train.eval_every": "eval_steps test_freq eval_freq eval_strategy evaluation_strategy",
    "train.keep_checkpoints": "save_total_limit max_actor_ckpt_to_keep max_ckpt_num",
    "train.report_to": "logger logging use_wandb use_tensorboard wandb tensorboard comet",
    "train.log_samples_every": "log_completions num_completions_to_print rollout_data_dir",
    "train.output_dir": "default_local_dir save_path ckpt_path run_name experiment_name out_dir "
    "logging_dir",
    "train.resume": "resume_from_checkpoint resume_mode load_checkpoint",
    "train.output_dir and train.resume": "overwrite_output_dir",
    "optimizer.learning_rate": "lr actor_learning_rate",
    "optimizer.max_grad_norm": "grad_clip clip_grad",
    "optimizer.schedule": "lr_scheduler_type lr_scheduler warmup_style",
    "optimizer.warmup_steps": "lr_warmup_steps num_warmup_steps",
    "optimizer.betas": "adam_beta1 adam_beta2 adam_betas",
    "optimizer.epsilon": "adam_epsilon",
    "optimizer.weight_decay": "l2 wd",
    "model.path": "model_name_or_path model_name pretrain model_id model_path",
    "model.dtype": "torch_dtype bf16 fp16 precision mixed_precision",
    "model.lora_rank": "lora_r r rank lora use_lora use_peft peft_config lora_config",
    "model.lora_alpha": "alpha",
    "model.lora_targets": "target_modules lora_target_modules",
    "model.lora_exclude": "exclude_modules",
    "model.gradient_checkpointing": "enable_gradient_checkpointing gradient_checkpointing_kwargs "
    "gradient_checkpointing_use_reentrant",
    "model.compile": "torch_compile use_torch_compile torch_compile_backend torch_compile_mode",
    "model.rslora": "use_rslora",
    "model.load_in_4bit": "load_in_8bit quantization quantization_config",
    "model.revision": "model_revision",
    "model.attn_implementation": "flash_attn use_flash_attention_2",
    "model.reference": "ref_model reference_model ref_model_path sync_ref_model",
    "model.adapter": "lora_adapter_path adapter_path lora_path",
    "task.path": "dataset_name dataset train_files prompt_data data_files train_path",
    "task.test_path": "val_files eval_dataset test_files val_path",
    "task.train_split": "dataset_train_split prompt_split",
    "task.test_split": "dataset_test_split eval_split",
    "task.subset": "dataset_config",
    "task.prompt_column": "prompt_key input_key",
    "task.answer_column": "label_key ground_truth",
    "task.shuffle": "shuffle_dataset data.shuffle",
    "task.train_problems": "max_samples train_max_samples",
    "task.test_problems": "val_max_samples",
    "reward.functions": "reward_funcs reward_weights custom_reward_function remote_rm_url "
    "reward_fn reward_model reward_manager reward_pretrain reward_model_name_or_path "
    "custom_reward_function.path custom_reward_function.name agent_func_path",
    "reward.functions.function": "functions.name functions.path functions.file",
    "prompt.template": "chat_template apply_chat_template input_template",
    "prompt.template_kwargs": "chat_template_kwargs apply_chat_template_kwargs",
    "prompt.system": "system_prompt system_message",
    "prompt.stop": "stop_strings stop_sequences stop_token_ids eos_token",
    "optimizer": "optim",
    "objective.baseline and objective.scale_advantages": "adv_estimator advantage_estimator",
    "evaluation.samples": "val_kwargs.n eval_n_samples_per_prompt num_generations_eval",
    "evaluation.temperature": "val_kwargs.temperature eval_temperature",
    "evaluation.top_p": "val_kwargs.top_p",
    "evaluation.top_k": "val_kwargs.top_k",
    "deepspeed": "zero_stage zero deepspeed_config ds_config fsdp fsdp_config strategy zero3 "
    "offload param_offload optimizer_offload offload_optimizer adam_offload",
}
NOTES = {
    # Sizes where ours is a count, and the like.
    "ppo_mini_batch_size": "did you mean objective.minibatches? It is a count, of the mini-batches "
    "that a step's prompts are cut into: rollout.prompts_per_step over verl's size",
    "gradient_accumulation_steps": "did you mean train.micro_batch_size? It is a size, sequences "
    "per forward/backward on a rank; how many there are follows from it",
    "num_train_epochs total_epochs num_epochs num_episodes": "did you mean train.steps? It counts "
    "steps, of rollout.prompts_per_step prompts each, not passes over the data",
    "warmup_ratio lr_warmup_ratio lr_warmup_steps_ratio": "did you mean optimizer.warmup_steps? It "
    "counts optimizer steps; it is no share of them",
    "logging_steps log_freq": "every step is logged; remove it",
    "n_gpus_per_node nnodes num_gpus gpus nproc_per_node num_processes": "the launcher decides "
    "that: deepspeed --num_gpus N, or --hostfile FILE; remove it",
    "critic critic_warmup critic_learning_rate critic_pretrain gamma lam lambd": "there is no "
    "critic, and a response has one reward; remove it",
    "val_before_train eval_on_start eval_before_train": "accuracy is measured before the first "
    "step wherever train.eval_every is not 0; remove it",
    "filter_overlong_prompts truncation": "prompts longer than rollout.max_prompt_tokens are left "
    "out; remove it",
    "remove_unused_columns": "every column goes to the reward functions that name it; remove it",
    "kl_loss_type kl_estimator kl_penalty": "the KL estimate is k3; remove it",
    "lora_dropout disable_dropout": "there is no dropout, since every pass must agree with the "
    "sampler's; remove it",
    "use_remove_padding packing_samples balance_batch": "train.micro_batch_tokens has as many "
    "rows share a batch as fit; remove it",
    "push_to_hub hub_model_id hub_token hub_strategy": "nothing is uploaded; remove it, and upload "
    "the folder adapter/ of the run",
    "wandb_project project_name project entity": "W&B's own: set WANDB_PROJECT and WANDB_ENTITY in "
    "the environment; the run has the name of its folder",
    "tokenizer tokenizer_path tokenizer_name tokenizer_name_or_path processing_class": "the "
    "tokenizer is that of model.path; remove it",
    "entropy_coeff entropy_loss_coef entropy_coef": "the objective has no entropy term; remove it",
    "cache_dir": "where models and data sets are kept is HF_HOME's to say, in the environment",
}
# What papers call an objective that is a choice of keys here: docs/objectives.md.
PAPERS = {
    "dr_grpo": "name: grpo, loss_aggregation: fixed_length, scale_advantages: none",
    "dapo": "name: grpo, loss_aggregation: token_mean, clip_high: 0.28, kl_weight: 0, "
    "mask_truncated: true",
    "bnpo": "name: grpo, loss_aggregation: token_mean",
    "reinforce": "name: grpo, baseline: none, scale_advantages: none",
    "reinforce_plus_plus": "name: grpo, baseline: batch, scale_advantages: batch",
    "reinforce_plus_plus_baseline": "name: grpo, baseline: group, scale_advantages: batch",
    "rloo": "name: grpo, baseline: leave_one_out, scale_advantages: none",
}


def keys_of_paper(name: str) -> str:
    """What to write in place of a paper's name for an objective, if it is one."""
    words = name.lower().replace("++", "_plus_plus").replace("-", "_").replace(" ", "_")
    return f"; {name} is {PAPERS[words]}" if words in PAPERS else ""


_TOLD = {word: f"did you mean {key}?" for key, words in KEYS.items() for word in words.split()} | {
    word: note for words, note in NOTES.items() for word in words.split()
}


def elsewhere_called(location: list[str]) -> str | None:
    """What to write in place of a key of another library, if it is one."""
    return _TOLD.get(".".join(location[-2:])) or _TOLD.get(location[-1])
