"""Typed settings (`settings`), and how they are read and explained (`reading`)."""

from capo_ds.config.errors import ConfigError
from capo_ds.config.paths import expand
from capo_ds.config.reading import (
    BUILTIN_MODELS,
    HOME,
    RECIPES,
    REPOSITORY,
    config_reference,
    load_config,
    parse_config,
    resolve_path,
)
from capo_ds.config.settings import (
    AGGREGATORS,
    BenchmarkConfig,
    CapoConfig,
    Config,
    DatasetConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PromptConfig,
    RewardConfig,
    Section,
    TaskConfig,
    TrainingSetConfig,
    WarmupConfig,
)
from capo_ds.config.text import decode

__all__ = [
    "AGGREGATORS",
    "BUILTIN_MODELS",
    "HOME",
    "RECIPES",
    "REPOSITORY",
    "BenchmarkConfig",
    "CapoConfig",
    "Config",
    "ConfigError",
    "DatasetConfig",
    "EvaluationConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PromptConfig",
    "RewardConfig",
    "Section",
    "TaskConfig",
    "TrainingSetConfig",
    "WarmupConfig",
    "config_reference",
    "decode",
    "expand",
    "load_config",
    "parse_config",
    "resolve_path",
]
