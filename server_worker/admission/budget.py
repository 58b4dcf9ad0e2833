"""The memory that sessions take together, and who may take more of it."""

from __future__ import annotations


class Budget:
    """Bytes that open steps and evaluations of all sessions take, beside the sessions' states.

    What a request will take is known before it is computed: from the shapes in the job's graph.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.states_bytes = 0
        """The bytes of all sessions' states, as of the last look."""
        self.open_bytes = 0
        self.wanted_bytes = 0
        """The bytes that the largest request wanted and found no room for, since sessions were parked last.
        """

    def take(self, nbytes: int) -> bool:
        """Take so many bytes where there is room, and return whether there was.

        Where nothing else is open there always is: what one step of a job needs, the operator has asked for.
        """
        if self.open_bytes and self.states_bytes + self.open_bytes + nbytes > self.limit_bytes:
            self.wanted_bytes = max(self.wanted_bytes, nbytes)
            return False
        self.open_bytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        self.open_bytes -= nbytes
