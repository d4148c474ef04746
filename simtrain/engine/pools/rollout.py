"""One rollout: a response on its way from admission to training."""

from __future__ import annotations


class Rollout:
    """A response to a prompt. Times are absolute [s], lengths in tokens."""

    __slots__ = (
        "admitted", "consumed_at", "consumed_version", "done", "end_clock", "evictions", "finish_version", "finished", "join_clock", "length", "number",
        "order", "prompt", "prompt_len", "reward_time", "scored", "server", "start_version", "started",
    )  # fmt: skip

    def __init__(self, number: int, prompt: int, prompt_len: int, length: int, reward_time: float) -> None:
        self.number = number
        """Position in the order of admission."""
        self.prompt = prompt
        self.prompt_len = prompt_len
        self.length = length
        """Tokens to generate."""
        self.reward_time = reward_time
        """Service time of its scoring. [s]"""
        self.done = 0
        """Tokens generated when it last joined or left a server."""
        self.join_clock = 0
        """The server's token clock when it joined."""
        self.end_clock = 0
        """The server's token clock when it will be complete."""
        self.order = 0
        """Position in the order in which the server's requests joined."""
        self.server = -1
        self.evictions = 0
        """Times that its KV cache was given up for want of memory."""
        self.admitted = self.started = self.finished = self.scored = self.consumed_at = -1.0
        self.start_version = self.finish_version = self.consumed_version = -1
        """Weights of its first token, of its last token, and those that the update it takes part in starts from."""

    @property
    def tokens(self) -> int:
        """Prompt and response. [tokens]"""
        return self.prompt_len + self.length

    @property
    def staleness(self) -> int:
        """Updates between the weights of its first token and those that it updates."""
        return self.consumed_version - self.start_version
