"""A worker keeps its machine awake where it can, says so where it cannot, and what does it ends with the worker."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.received import wait_until
from workers import wakefulness
from workers.wakefulness import command, stay_awake

LIMIT_S = 20.0
WORKER = """
import sys, time
from workers import wakefulness
wakefulness.command = lambda *_: ("cat",)
wakefulness.stay_awake()
time.sleep(600)
"""


def test_a_mac_waits_for_this_very_process():
    assert command("darwin", 71) == ("/usr/bin/caffeinate", "-i", "-s", "-w", "71")


def test_linux_is_inhibited_for_as_long_as_somebody_has_its_input():
    words = command("linux", 71)
    assert (words[0], words[-1]) == ("systemd-inhibit", "cat")
    assert "--what=sleep:idle" in words


def test_other_systems_are_left_alone():
    assert stay_awake("win32") is None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("/nowhere/caffeinate",), "No such file or directory"),
        ((sys.executable, "-c", "import sys; sys.exit('Access denied')"), "Access denied"),
        ((sys.executable, "-c", ""), "it ended"),
    ],
)
def test_what_cannot_keep_it_awake_is_said_once_and_fails_nothing(words, why, monkeypatch, caplog):
    monkeypatch.setattr(wakefulness, "command", lambda *_: words)
    caplog.set_level("INFO")
    stay_awake().join(LIMIT_S)
    (said,) = [record.getMessage() for record in caplog.records if "may go to sleep" in record.getMessage()]
    assert said.endswith(f"{words[0]}: {why}")


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_keeps_it_awake_ends_with_a_worker_that_is_killed():
    worker = subprocess.Popen([sys.executable, "-c", WORKER], start_new_session=True)
    try:
        wait_until(lambda: psutil.Process(worker.pid).children(), "something keeps it awake")
        (awake,) = psutil.Process(worker.pid).children()
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(LIMIT_S)
    wait_until(lambda: has_ended(awake), "what kept it awake ends")
