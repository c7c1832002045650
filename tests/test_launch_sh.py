"""launch.sh: old bash, any folder, any interruption. Bootstraps here use a Python that only pretends to install."""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
LAUNCHER = CHECKOUT / "launch.sh"
SCRIPTS = [LAUNCHER, CHECKOUT / ".ci" / "run"]

# A stand-in for python3: tells its version, "makes" an environment that holds a copy of itself, counts what it is asked
# in $CALLS, and runs "cluster.cli" by printing what it got. Installing takes $INSTALL_S seconds and fails with $FAIL.
FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *"version_info < (3, 11)"*) exit "${TOO_OLD:-0}" ;;
    *"import ensurepip"*) exit "${NO_VENV:-0}" ;;
    *platform.machine*) exit 0 ;;
    --version) echo "Python 3.11.0" ;;
    *"-m venv"*)
        for target in "$@"; do :; done
        echo venv >>"$CALLS"
        rm -rf "$target" && mkdir -p "$target/bin" && cp "$0" "$target/bin/python" ;;
    *"-m pip"*)
        echo "pip${*##* -r }" >>"$CALLS"
        echo "Collecting something"
        sleep "${INSTALL_S:-0}"
        [ -z "${FAIL:-}" ] || { echo "ERROR: No matching distribution"; exit 1; } ;;
    *) echo "ran in $PWD with $PYTHONPATH: $*" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the launcher beside small locks."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(LAUNCHER, folder)
    (folder / "requirements.txt").write_text("one==1\n")
    (folder / "requirements-dev.txt").write_text("two==2\n")
    return folder


@pytest.fixture
def environment(tmp_path):
    binaries = tmp_path / "bin"
    binaries.mkdir()
    python = binaries / "python3.13"
    python.write_text(FAKE_PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    path = f"{binaries}:/usr/bin:/bin"
    return {"PATH": path, "CALLS": str(tmp_path / "calls"), "HOME": str(tmp_path), "CI": "true"}


def launch(checkout, environment, *arguments, cwd=None, **more):
    return subprocess.run(
        ["bash", str(checkout / "launch.sh"), *arguments],
        check=False,
        env=environment | more,
        cwd=cwd or checkout,
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )


def calls(environment) -> list[str]:
    file = Path(environment["CALLS"])
    return file.read_text().split() if file.exists() else []


def installs(environment, name="requirements.txt") -> int:
    return sum(call.endswith(f"/{name}") for call in calls(environment))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse_and_are_executable(script):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert os.access(script, os.X_OK)


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    found = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck comes with requirements-dev.txt")
    done = subprocess.run([found, *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "construct",
    [
        r"\bmapfile\b", r"\breadarray\b", r"declare -A", r"local -[An]", r"\$\{\w+(,,|\^\^)", r"readlink -f", r"realpath",
        r"\btimeout\b", r"\bsetsid\b", r"\bflock\b", r"&>>", r"\|&", r"sed -i", r"grep -P", r"stat -c", r"date \+%s%N",
        r"\bcoproc\b", r"wait -n", r"\$EPOCH", r"printf '%\(",
    ],
)  # fmt: skip
def test_nothing_that_bash_3_2_or_bsd_tools_lack(construct):
    for script in SCRIPTS:
        code = "\n".join(line for line in script.read_text().splitlines() if not line.lstrip().startswith("#"))
        assert not re.search(construct, code), f"{script.name}: {construct}"


def test_first_call_makes_the_environment_and_later_calls_only_run(checkout, environment):
    first = launch(checkout, environment, "status", "--json")
    assert first.returncode == 0
    assert first.stdout == f"ran in {checkout} with {checkout}: -P -m cluster.cli status --json\n"
    assert "first start" in first.stderr
    second = launch(checkout, environment, "status", "--json")
    assert second.stdout == first.stdout
    assert second.stderr == ""
    assert (calls(environment).count("venv"), installs(environment)) == (1, 1)
    assert not (checkout / ".venv.lock").exists()


def test_later_calls_add_little(checkout, environment):
    launch(checkout, environment)
    took = []
    for _ in range(5):
        began = time.monotonic()
        launch(checkout, environment)
        took.append(time.monotonic() - began)
    assert min(took) < 0.1


def test_runs_from_any_folder_and_through_symbolic_links(checkout, environment, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "direct").symlink_to(checkout / "launch.sh")
    (elsewhere / "relative").symlink_to("direct")
    done = subprocess.run(
        [str(elsewhere / "relative"), "x"], env=environment, cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"ran in {elsewhere} with {checkout}: -P -m cluster.cli x\n"


def test_arguments_arrive_as_they_are(checkout, environment):
    assert launch(checkout, environment, "prompt", "two  words * $x").stdout.endswith("prompt two  words * $x\n")


def test_changed_lock_is_installed_again_into_the_same_environment(checkout, environment):
    launch(checkout, environment)
    (checkout / "requirements.txt").write_text("one==2\n")
    done = launch(checkout, environment)
    assert "changed" in done.stderr
    assert (calls(environment).count("venv"), installs(environment)) == (1, 2)


def test_failed_installation_is_plain_and_repaired_by_the_next_call(checkout, environment):
    failed = launch(checkout, environment, FAIL="yes")
    assert failed.returncode == 1
    assert "No matching distribution" in failed.stderr
    assert "try again" in failed.stderr
    assert launch(checkout, environment).returncode == 0
    assert calls(environment).count("venv") == 2


def test_interrupted_installation_is_repaired_by_the_next_call(checkout, environment):
    process = subprocess.Popen(
        ["bash", str(checkout / "launch.sh")], env=environment | {"INSTALL_S": "30"}, stderr=subprocess.PIPE
    )
    while not installs(environment):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=10) == 143
    process.stderr.close()
    assert not (checkout / ".venv.lock").exists()
    assert launch(checkout, environment).returncode == 0
    assert calls(environment).count("venv") == 2


def test_abandoned_lock_is_taken_over(checkout, environment):
    gone = subprocess.Popen(["true"])
    gone.wait()
    (checkout / ".venv.lock").mkdir()
    (checkout / ".venv.lock" / "owner").write_text(f"{gone.pid}\n")
    assert launch(checkout, environment).returncode == 0
    assert not (checkout / ".venv.lock").exists()


def test_two_first_calls_install_once(checkout, environment):
    both = [
        subprocess.Popen(
            ["bash", str(checkout / "launch.sh"), "x"],
            env=environment | {"INSTALL_S": "0.5"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=30)[0] for process in both]
    assert all(output.endswith(b"-m cluster.cli x\n") for output in outputs)
    assert installs(environment) == 1


# Where the launcher also looks, whatever the PATH says.
no_other_python = pytest.mark.skipif(
    any(list(Path(folder).glob("python*")) for folder in ("/opt/homebrew/bin", "/usr/local/bin")),
    reason="this machine has a Python where the launcher always looks",
)


@no_other_python
def test_no_python_is_one_plain_sentence(checkout, environment):
    done = launch(checkout, environment, TOO_OLD="1", PATH=environment["PATH"].split(":")[0] + ":" + _tools(checkout))
    assert done.returncode == 1
    assert done.stderr == (
        "tandem: Python 3.11 or newer is needed and none was found on the PATH; install one and try again.\n"
    )


@no_other_python
def test_python_without_venv_says_what_to_install(checkout, environment):
    done = launch(checkout, environment, NO_VENV="1", PATH=environment["PATH"].split(":")[0] + ":" + _tools(checkout))
    assert done.returncode == 1
    assert "python3-venv" in done.stderr


def _tools(checkout: Path) -> str:
    """A folder with the tools that the launcher uses and no Python."""
    folder = checkout.parent / "tools"
    folder.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "mkdir", "rm", "mv", "sleep", "uname", "ps"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)
