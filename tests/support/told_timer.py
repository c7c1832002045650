"""A timer that measures nothing: steps take what they are said to take."""


class ToldTimer:
    """Much as a small model, and always the same: so much for each layer, row, token, and token before them.

    tried: the places and steps that were asked for, in order; disturbed: of these, which took thrice as long; clock: a manual one
    that goes on by what a step takes, and scale: how much slower all is; window: of so many tokens before, each adds twice as much.
    """

    OVERHEAD_S, LAYER_S, ROW_S, TOKEN_S, CONTEXT_S = 2e-3, 1e-3, 1e-4, 1e-5, 5e-9

    def __init__(self, model=None, *, disturbed=(), clock=None, scale=1.0, window=0):
        self.tried = []
        self._disturbed = disturbed
        self._clock = clock
        self._scale = scale
        self._window = window

    def __call__(self, place, tried):
        self.tried.append((place, tried))
        width = place.layers[1] - place.layers[0]
        seconds = self._scale * (self.OVERHEAD_S + width * (self.LAYER_S + self._work_s(tried)))
        seconds *= 3 if len(self.tried) - 1 in self._disturbed else 1
        if self._clock is not None:
            self._clock.now += seconds
        return seconds

    def _work_s(self, tried):
        """Of each layer."""
        before = tried.context + (min(tried.context, self._window) if self._window else 0)
        if tried.num_tokens == 1:
            return tried.rows * (self.ROW_S + before * self.CONTEXT_S)
        return tried.num_tokens * (self.TOKEN_S + (before + tried.num_tokens / 2) * self.CONTEXT_S)

    def window_tokens(self, layers):
        return self._window

    def payload_bytes(self, layers):
        return 1000 * layers[1]
