"""The errors an operator can meet. Each message names the thing that is wrong and what to do about it."""


class AdcoreError(Exception):
    """The root of every error that adcore raises on purpose; its text is fit to print without a traceback."""


class ConfigError(AdcoreError):
    """A flag, environment variable or configuration file is wrong (exit status 2)."""


class StartError(AdcoreError):
    """The configuration is right but the server cannot start with it (exit status 3)."""


class SourceError(AdcoreError):
    """A store of ad data cannot be reached, refuses, or answers nonsense."""
