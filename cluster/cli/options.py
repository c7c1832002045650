"""What the command line may ask of a generation."""

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves it to the API."""

    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    model: str | None = None
    raw: bool = False
    strategy: str | None = None
    conversation: str | None = None
