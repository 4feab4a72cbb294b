"""The error that every room raises for a setting that cannot be used."""


class ConfigError(ValueError):
    """A setting that cannot be used; the text names key, value and remedy."""
