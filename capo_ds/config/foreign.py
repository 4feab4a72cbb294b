"""What TRL, verl and OpenRLHF call the settings, for those who come from there."""

from __future__ import annotations

KEYS = {
    "rollout.group_size": "num_generations n rollout.n n_samples_per_prompt G",
    "rollout.prompts_per_step": "train_batch_size gen_batch_size rollout_batch_size "
    "generation_batch_size",
    "rollout.max_new_tokens": "max_completion_length max_response_length generate_max_len "
    "max_tokens response_length",
    "rollout.max_prompt_tokens": "max_prompt_length prompt_max_len",
    "rollout.sampler": "use_vllm vllm_mode",
    "rollout.dynamic_sampling": "filter_groups dynamic_filtering max_num_gen_batches",
    "rollout.server_url": "vllm_server_base_url vllm_server_host vllm_server_port",
    "rollout.vllm_cache_gib": "gpu_memory_utilization vllm_gpu_memory_utilization",
    "rollout.tensor_parallel": "tensor_model_parallel_size vllm_tensor_parallel_size",
    "rollout.importance_correction": "vllm_importance_sampling_correction rollout_is "
    "importance_sampling_level rollout_correction",
    "rollout.importance_cap": "vllm_importance_sampling_cap tis_imp_ratio_cap rollout_is_threshold",
    "objective.kl_weight": "beta kl_coef kl_loss_coef use_kl_loss init_kl_coef",
    "objective.clip_low": "clip_ratio_low epsilon_low",
    "objective.clip_high": "epsilon_high clip_ratio_high eps_clip_high",
    "objective.clip_low and objective.clip_high": "epsilon clip_ratio cliprange eps_clip",
    "objective.epochs": "num_iterations ppo_epochs num_ppo_epochs",
    "objective.minibatches": "ppo_mini_batch_size num_mini_batches steps_per_generation",
    "objective.loss_aggregation": "loss_agg_mode",
    "objective.name": "policy_loss loss_mode surrogate",
    "objective.name and objective.loss_aggregation": "loss_type",
    "objective.baseline": "advantages advantage mean_level",
    "objective.scale_advantages": "scale_rewards norm_adv_by_std_in_grpo whiten_advantages "
    "normalize_advantages std_level",
    "objective.mask_truncated": "mask_truncated_completions overlong_filter",
    "train.micro_batch_size": "per_device_train_batch_size ppo_micro_batch_size "
    "ppo_micro_batch_size_per_gpu micro_train_batch_size gradient_accumulation_steps",
    "train.micro_batch_tokens": "ppo_max_token_len_per_gpu log_prob_max_token_len_per_gpu "
    "use_dynamic_bsz max_tokens_per_gpu",
    "train.steps": "max_steps total_training_steps num_train_epochs total_epochs num_episodes",
    "train.save_every": "save_steps save_freq save_interval save_strategy",
    "train.eval_every": "eval_steps test_freq eval_freq eval_strategy",
    "train.keep_checkpoints": "save_total_limit max_actor_ckpt_to_keep max_ckpt_num",
    "train.report_to": "logger logging use_wandb use_tensorboard",
    "train.log_samples_every": "log_completions num_completions_to_print",
    "train.output_dir": "default_local_dir save_path run_name project_name experiment_name",
    "train.resume": "resume_from_checkpoint resume_mode load_checkpoint",
    "optimizer.learning_rate": "lr actor_learning_rate",
    "optimizer.max_grad_norm": "grad_clip clip_grad",
    "optimizer.schedule": "lr_scheduler_type lr_scheduler warmup_style",
    "optimizer.warmup_steps": "lr_warmup_steps num_warmup_steps warmup_ratio lr_warmup_ratio "
    "lr_warmup_steps_ratio",
    "optimizer.betas": "adam_beta1 adam_beta2 adam_betas",
    "model.path": "model_name_or_path model_name pretrain model_id",
    "model.dtype": "torch_dtype bf16 fp16 precision",
    "model.lora_rank": "lora_r r rank",
    "model.lora_targets": "target_modules lora_target_modules",
    "model.gradient_checkpointing": "enable_gradient_checkpointing",
    "model.rslora": "use_rslora",
    "task.path": "dataset_name dataset train_files prompt_data data_files",
    "task.test_path": "val_files eval_dataset test_files",
    "task.train_split": "dataset_train_split",
    "task.test_split": "dataset_test_split",
    "task.subset": "dataset_config",
    "task.prompt_column": "prompt_key input_key",
    "task.answer_column": "label_key ground_truth",
    "reward.functions": "reward_funcs reward_weights custom_reward_function remote_rm_url "
    "reward_fn",
    "prompt.template": "chat_template apply_chat_template input_template",
    "aggregator": "algorithm",
    "objective.baseline and objective.scale_advantages": "adv_estimator advantage_estimator",
    "deepspeed": "zero_stage zero deepspeed_config fsdp strategy",
}
NOTES = {
    "logging_steps log_freq": "every step is logged; remove it",
    "n_gpus_per_node nnodes num_gpus": "the launcher decides that: deepspeed --num_gpus N, or "
    "--hostfile FILE",
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
