"""What a command says in one sentence. Everything else is a bug, and keeps its traceback."""


class UserError(Exception):
    """Something that its user can put right: the message says what is wrong, where, and what to do.

    Commands catch this and nothing broader.
    """


class DataError(UserError):
    """Questions, answers or a data set that is missing or cannot be used."""


class StoreError(DataError):
    """A feature store, or the source of one, that is missing, unfinished or damaged."""


class CheckpointError(UserError):
    """Weights that are missing, damaged, or do not belong together."""


class RunError(UserError):
    """A run folder that cannot be used, or runs that cannot be compared."""


class Interrupted(Exception):
    """A signal asked to stop, and everything is saved; the message says how to go on."""

    def __init__(self, message: str = "", exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
