"""Typed settings (`settings` and a module a theme), read and explained by `reading`."""

from capo_ds.config.errors import ConfigError
from capo_ds.config.method import CapoConfig, ObjectiveConfig
from capo_ds.config.model import ModelConfig
from capo_ds.config.paths import expand, folder_named, looks_like_a_path
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
from capo_ds.config.sampling import EvaluationConfig
from capo_ds.config.section import Section
from capo_ds.config.settings import Config
from capo_ds.config.task import (
    BenchmarkConfig,
    DatasetConfig,
    PromptConfig,
    RewardConfig,
    TaskConfig,
    TrainingSetConfig,
)
from capo_ds.config.text import decode
from capo_ds.config.training import OptimizerConfig, WarmupConfig

__all__ = [
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
    "folder_named",
    "load_config",
    "looks_like_a_path",
    "parse_config",
    "resolve_path",
]
