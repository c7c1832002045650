"""How many others there are where a request runs: what its times are held against."""


class Crowd:
    """Those on the route of one run while it runs, itself among them: the most there were, and how many had tokens when it was given some."""

    def __init__(self) -> None:
        self.most = 1
        self._decoding = 0
        self._num_reports = 0

    def __repr__(self) -> str:
        return f"Crowd({self.most} at most, {self.mean_decoding} decoding)"

    @property
    def mean_decoding(self) -> float | None:
        """None before it was given any."""
        return self._decoding / self._num_reports if self._num_reports else None

    def given(self, num_decoding: int) -> None:
        """Tokens came, while so many had some."""
        self._decoding += num_decoding
        self._num_reports += 1
