"""How long what describes items waits for more of it."""


class Patience:
    """Descriptions that come one after the other go out together, but nothing waits for more than
    `limit_s` after the first of them. Times are monotonic seconds."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._until_s: float | None = None  # None while none is coming

    def came(self, now_s: float) -> None:
        """One came."""
        if self._until_s is None:
            self._until_s = now_s + self._limit_s

    def renew(self) -> None:
        """None came, or all that did are out."""
        self._until_s = None

    def lasts(self, now_s: float) -> bool:
        return self._until_s is None or now_s < self._until_s
