"""One client's calls: its script in its environment, closed off, and what it says of each."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.clients.installing import ENVIRONMENTS, HERE

# Against hanging for ever; no expectation.
_LIMIT_S = 1800
_SHOWN_CHARACTERS = 1500
# Programs that would tell of themselves, look for news or fetch lists; what does so all the same meets a closed port.
_QUIET = {
    "ANONYMIZED_TELEMETRY": "false",
    "AIDER_ANALYTICS_DISABLE": "true",
    "AIDER_CHECK_UPDATE": "false",
    "CONTINUE_TELEMETRY_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "NO_UPDATE_NOTIFIER": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "PROMPTFOO_DISABLE_REMOTE_GENERATION": "1",
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "PROMPTFOO_DISABLE_UPDATE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
_CLOSED = "http://127.0.0.1:9"
_NO_WAY_OUT = {name: _CLOSED for kind in ("http", "https") for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY")} | {
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
}
_KEPT = ("LANG", "LC_ALL", "TERM", "TZ")


@dataclass(frozen=True)
class Result:
    """What became of one call. failure: why it failed, None where it passed."""

    call: str
    failure: str | None

    def __str__(self) -> str:
        return f"pass  {self.call}" if self.failure is None else f"FAIL  {self.call}: {self.failure}"


def calls_of(name: str, folder: Path, given: dict[str, str]) -> list[Result]:
    """Run a client's calls. given: further environment. A script that does not come to its end is a failed call of that name.

    Its home lies outside of the checkout, which agents would take for their project.
    """
    told, log = folder / "results", ENVIRONMENTS / f"{name}.log"
    told.write_text("")
    with tempfile.TemporaryDirectory(prefix=f"tandem-{name}-", ignore_cleanup_errors=True) as home:
        environment = _environment(folder, home) | given | {"CALLS_RESULTS": str(told)}
        status = _run(_command(name, folder), home, environment, log)
    results = [Result(**json.loads(line)) for line in told.read_text().splitlines()]
    if status != 0 or not results:
        ended = f"not within {_LIMIT_S} s" if status is None else f"with {status}"
        results.append(Result("the script's end", f"{ended}\n{_end_of(log)}"))
    return results


def _run(command: list[str], home: str, environment: dict[str, str], log: Path) -> int | None:
    """Its exit status; None where it took too long. Nothing of it is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):  # with what it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _command(name: str, folder: Path) -> list[str]:
    for program, script in (("python", "calls.py"), ("node", "calls.mjs")):
        file = HERE / name / script
        if file.is_file() and program == "python":
            return [str(folder / "bin" / "python"), "-P", str(file)]
        if file.is_file():
            # Packages are looked for from where a script lies.
            shutil.copy(file, folder)
            shutil.copytree(HERE / "helpers", folder / "helpers", dirs_exist_ok=True)
            return [shutil.which(program, path=_path(folder)) or program, str(folder / script)]
    raise RuntimeError(f"{HERE / name} has no calls.py and no calls.mjs")


def _path(folder: Path) -> str:
    return os.pathsep.join([str(folder / "bin"), str(folder / "node_modules" / ".bin"), os.environ["PATH"]])


def _environment(folder: Path, home: str) -> dict[str, str]:
    """Nothing of the user's but the way to programs, and the language."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    own = {"HOME": home, "TMPDIR": home, "PATH": _path(folder), "PYTHONPATH": str(HERE / "helpers")}
    return kept | _QUIET | _NO_WAY_OUT | own


def _end_of(log: Path) -> str:
    return f"{log.read_text(errors='replace')[-_SHOWN_CHARACTERS:]}\n(all of it: {log})"
