"""What can keep a run from its result."""


class Missing(Exception):
    """A contender or a tool cannot be had on this machine; the text says why. The run goes on without it."""


class RunError(Exception):
    """A result would not be worth anything; the run ends."""
