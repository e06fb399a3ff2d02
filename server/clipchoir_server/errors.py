"""What goes wrong with a server."""


class ServerError(Exception):
    """The server cannot be started or has failed; the message says which model and why."""


class DiedError(ServerError):
    """A server that was up has died, as a whole or in part.

    Attributes:
        event: the same for machines.
    """

    def __init__(self, message: str, **event: object) -> None:
        super().__init__(message)
        self.event = event
