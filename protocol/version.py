"""The number of this checkout, as `pyproject.toml` says it, and of what it runs on."""

import functools
import platform
import tomllib
from importlib.metadata import version
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


@functools.cache
def tandem_version() -> str:
    """Such as "0.15.0"."""
    number: str = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["version"]
    return number


@functools.cache
def installed_version(package: str) -> str:
    """Such as "0.32.4", looked up once: that takes milliseconds. Raises PackageNotFoundError."""
    return version(package)


def described() -> str:
    """With the versions that answers depend on, in one line."""
    on = ", ".join(f"{name} {installed_version(name)}" for name in ("mlx", "mlx-lm"))
    return f"Tandem {tandem_version()} ({on}, Python {platform.python_version()} on {platform.system()} {platform.machine()})"
