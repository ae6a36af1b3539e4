"""The one exception type of quantarray."""


class QuantArrayError(ValueError):
    """A request that has no exact, documented result.

    The message names the operation, the argument, its value or shape, and what would be right.
    """
