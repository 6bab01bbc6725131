"""What a person did wrong, told apart from what this library did wrong.

Every message states the rule with its values and then what came: ``batch_size must be at least 1, got 0``. The command
line prints a `FovealError` in one line and exits with status 2; any other exception but OSError is a bug, and shows
its traceback.
"""


class FovealError(ValueError):
    """A mistake in what this library was given: an option, a file, data, a network that cannot do what was asked."""
