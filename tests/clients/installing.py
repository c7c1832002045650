"""An environment for each client, made where it is missing or its pins changed."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.running_cluster import CHECKOUT

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = CHECKOUT / ".clients"
_PINS = ("requirements.txt", "package.json")
NAMES = sorted(file.parent.name for pins in _PINS for file in HERE.glob(f"*/{pins}"))
_SHOWN_CHARACTERS = 2000


def installed(name: str) -> Path:
    """The folder of a client's environment. Raises RuntimeError with the end of what the installation said."""
    folder = ENVIRONMENTS / name
    stamp = folder / "stamp"
    wanted = _stamp(name)
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"  installing into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if (HERE / name / "requirements.txt").is_file():
            _install_python(folder, HERE / name / "requirements.txt")
        else:
            _install_javascript(folder, HERE / name / "package.json")
        stamp.write_text(wanted)
    return folder


def _stamp(name: str) -> str:
    pins = b"".join(file.read_bytes() for pin in _PINS if (file := HERE / name / pin).is_file())
    return f"{sys.version} {hashlib.sha256(pins).hexdigest()}"


def _install_python(folder: Path, pins: Path) -> None:
    venv.create(folder, with_pip=True, symlinks=True)
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", "-r", str(pins)], folder)


def _install_javascript(folder: Path, pins: Path) -> None:
    if shutil.which("npm") is None:
        raise RuntimeError("npm was not found; install node and try again")
    shutil.copy(pins, folder)
    _run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], folder)


def _run(command: list[str], folder: Path) -> None:
    """It computes less urgently than whatever else runs here."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, preexec_fn=_yield_to_others
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} could not install it: {(done.stdout + done.stderr)[-_SHOWN_CHARACTERS:]}")


def _yield_to_others() -> None:
    os.nice(10)
