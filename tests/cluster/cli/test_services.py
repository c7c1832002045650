"""The texts that make a worker a service, to the letter; and that installing writes, joins and asks as it should."""

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli.installing import Account, Installer, installed, manager_of
from cluster.cli.main import main
from cluster.cli.services import Launchd, Systemd, WorkerService
from cluster.cli.session import open_session
from protocol.errors import TandemError, UsageError
from protocol.home import Home
from protocol.join_token import make_id, make_secret, make_token
from protocol.joined import remember_joined

KEY = "k" * 40
TOKEN = make_token(KEY, make_id() + make_secret())
SERVICE = WorkerService(
    name="studio",
    user="ada",
    user_home=Path("/Users/ada"),
    launcher=Path("/Users/ada/Code/my tandem/launch.sh"),
    home=Path("/Users/ada/Code/my tandem/.tandem"),
    join="10.0.0.1:4711",
    memory_limit="8GB",
    environment={"HF_HOME": '/data/100%/$x "y"'},
)
UNIT = r"""[Unit]
Description=Tandem worker studio
StartLimitIntervalSec=0

[Service]
Environment="TANDEM_HOME=/Users/ada/Code/my tandem/.tandem"
Environment="HF_HOME=/data/100%%/$x \"y\""
ExecStart="/Users/ada/Code/my tandem/launch.sh" "worker" "--join" "10.0.0.1:4711" "--name" "studio" "--memory-limit" "8GB"
Restart=always
RestartSec=30

[Install]
WantedBy=default.target
"""
PLIST = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>EnvironmentVariables</key>
	<dict>
		<key>HF_HOME</key>
		<string>/data/100%/$x "y"</string>
		<key>HOME</key>
		<string>/Users/ada</string>
		<key>TANDEM_HOME</key>
		<string>/Users/ada/Code/my tandem/.tandem</string>
	</dict>
	<key>KeepAlive</key>
	<true/>
	<key>Label</key>
	<string>tandem-worker-studio</string>
	<key>ProcessType</key>
	<string>Interactive</string>
	<key>ProgramArguments</key>
	<array>
		<string>/Users/ada/Code/my tandem/launch.sh</string>
		<string>worker</string>
		<string>--join</string>
		<string>10.0.0.1:4711</string>
		<string>--name</string>
		<string>studio</string>
		<string>--memory-limit</string>
		<string>8GB</string>
	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>StandardErrorPath</key>
	<string>/Users/ada/Code/my tandem/.tandem/logs/studio-service.out</string>
	<key>StandardOutPath</key>
	<string>/Users/ada/Code/my tandem/.tandem/logs/studio-service.out</string>
	<key>ThrottleInterval</key>
	<integer>30</integer>
	<key>UserName</key>
	<string>ada</string>
</dict>
</plist>
"""


def test_unit_of_systemd_is_this():
    assert Systemd(Path("/u")).text(SERVICE).decode() == UNIT


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_has_nothing_to_say_against_its_unit(tmp_path):
    launcher = tmp_path / "my tandem" / "launch.sh"
    launcher.parent.mkdir()
    shutil.copy(open_session().checkout / "launch.sh", launcher)
    file = Systemd(tmp_path).file("studio")
    file.write_bytes(Systemd(tmp_path).text(SERVICE._replace(launcher=launcher)))
    verify = ["systemd-analyze", "verify", "--user", str(file)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(verify, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_daemon_of_launchd_is_this():
    assert Launchd().text(SERVICE).decode() == PLIST


def test_commands_of_systemd_are_these():
    systemd = Systemd(Path("/u"))
    assert systemd.file("studio") == Path("/u/tandem-worker-studio.service")
    assert [" ".join(command) for command in systemd.begin("studio", replaces=True)] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now tandem-worker-studio.service",
        "systemctl --user restart tandem-worker-studio.service",
    ]
    assert systemd.end("studio") == [("systemctl", "--user", "disable", "--now", "tandem-worker-studio.service")]


def test_commands_of_launchd_are_these():
    launchd = Launchd()
    file = "/Library/LaunchDaemons/tandem-worker-studio.plist"
    assert launchd.begin("studio", replaces=False) == [("launchctl", "bootstrap", "system", file)]
    assert launchd.begin("studio", replaces=True)[0] == ("launchctl", "bootout", "system/tandem-worker-studio")


@pytest.mark.parametrize("manager", [Systemd(Path("/u")), Launchd()])
def test_service_is_known_by_its_file_and_its_home(manager):
    assert manager.worker_of(manager.file("studio")) == "studio"
    assert manager.worker_of(Path("/u/ssh.service")) is None
    assert manager.is_of(manager.text(SERVICE), SERVICE.home)
    assert not manager.is_of(manager.text(SERVICE), SERVICE.home.with_name(".tand"))
    assert not manager.is_of(b"nonsense", SERVICE.home)


class Machine:
    """An installer whose commands are noted and fail where they are told to, and whose joins are too."""

    def __init__(self, tmp_path, *, uid, kind):
        self.home = Home(tmp_path / "home")
        self.home.create()
        self.folder = tmp_path / "services"
        self.said, self.ran, self.joined, self.fails = [], [], [], {}
        self.manager = kind(self.folder)
        account = Account(uid=uid, name="ada", home=tmp_path)
        self.installer = Installer(
            open_session(), self.manager, account, say=self.said.append, run=self._run, join_once=self._join
        )

    def _run(self, command):
        self.ran.append(" ".join(command))
        return self.fails.get(command[0])

    def _join(self, session, guest):
        self.joined.append(guest.environment["TANDEM_TOKEN"])
        remember_joined(session.home, guest.name, KEY, "tcp://10.0.0.1:4711")

    def install(self, **given):
        wanted = {"address": None, "token": None, "name": None, "memory_limit": None} | given
        self.installer.install(find=lambda _: "tcp://10.0.0.1:4711", **wanted)

    def written(self):
        return [file.read_text() for folder in (self.folder, self.home.root) for file in folder.rglob("tandem-*")]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    for variable in ("HF_HOME", "HF_HUB_CACHE", "TANDEM_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    return lambda uid=1000, kind=Systemd: Machine(tmp_path, uid=uid, kind=kind)


@pytest.mark.parametrize("address", ["10.0.0.1:4711", "auto"])
def test_token_joins_once_and_is_in_no_file(machine, address):
    here = machine()
    here.install(address=address, token=TOKEN, name="studio")
    assert here.joined == [TOKEN]
    (unit,) = here.written()
    assert f'"--join" "{address}" "--name" "studio"' in unit
    assert TOKEN not in unit
    assert "--token" not in unit
    assert "TANDEM_TOKEN" not in unit
    assert here.ran[:2] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now tandem-worker-studio.service",
    ]
    assert here.said == [
        "Worker studio is a service of this machine; `./launch.sh worker --uninstall-service` ends that."
    ]


def test_who_has_joined_before_needs_neither_token_nor_address(machine):
    here = machine()
    remember_joined(here.home, "studio", KEY, "tcp://10.0.0.1:4711")
    here.install()
    assert here.joined == []
    assert '"--join" "10.0.0.1:4711" "--name" "studio"' in here.written()[0]


def test_who_has_not_is_told_to_bring_a_token_and_nothing_is_written(machine):
    here = machine()
    with pytest.raises(UsageError, match="has not joined a cluster yet; give the --token"):
        here.install(address="10.0.0.1:4711")
    with pytest.raises(UsageError, match="needs --join"):
        here.install(token=TOKEN)
    with pytest.raises(UsageError, match="is no size"):
        here.install(address="auto", memory_limit="much")
    assert here.written() == here.ran == []


def test_where_the_files_are_roots_the_plist_is_prepared_and_the_commands_are_said(machine):
    here = machine(kind=Launchd)
    with pytest.raises(TandemError, match="run the commands above"):
        here.install(address="auto", token=TOKEN, name="studio")
    prepared = here.home.root / "services" / "tandem-worker-studio.plist"
    assert plistlib.loads(prepared.read_bytes())["UserName"] == "ada"
    target = here.folder / prepared.name
    assert here.said[1:] == [
        f"sudo install -o root -g wheel -m 644 {prepared} {target}",
        f"sudo launchctl bootstrap system {target}",
    ]
    assert here.ran == []
    target.parent.mkdir()
    target.write_bytes(prepared.read_bytes())
    with pytest.raises(TandemError, match="run the commands above"):
        here.installer.uninstall(None)
    assert here.said[-2:] == ["sudo launchctl bootout system/tandem-worker-studio", f"sudo rm {target}"]


def test_root_of_a_mac_has_it_done(machine):
    here = machine(uid=0, kind=Launchd)
    here.install(address="auto", token=TOKEN, name="studio")
    assert here.ran == [f"launchctl bootstrap system {here.folder}/tandem-worker-studio.plist"]


def test_uninstalling_ends_the_services_of_this_home_and_no_other(machine):
    here = machine()
    here.install(address="auto", token=TOKEN, name="studio")
    foreign = here.manager.file("mini")
    foreign.write_bytes(here.manager.text(SERVICE))
    here.installer.uninstall("mini")
    assert here.said[-1] == "No service is installed."
    here.installer.uninstall(None)
    assert "systemctl --user disable --now tandem-worker-studio.service" in here.ran
    assert list(here.folder.iterdir()) == [foreign]
    assert installed(here.manager, here.home) == []


def test_command_that_fails_is_said_and_one_for_the_boot_is_left_to_root(machine):
    here = machine()
    here.fails = {"loginctl": "access denied"}
    here.install(address="auto", token=TOKEN)
    assert "sudo loginctl enable-linger ada" in here.said[0]
    here.fails = {"systemctl": "no bus"}
    with pytest.raises(TandemError, match=r"`systemctl --user daemon-reload` failed \(no bus\)"):
        here.install()


def test_machine_without_services_says_so(tmp_path):
    account = Account(1000, "ada", tmp_path)
    with pytest.raises(TandemError, match="no systemd"):
        manager_of("linux", account, {}, has_systemd=False)
    assert isinstance(manager_of("darwin", account, {}, has_systemd=False), Launchd)
    there = manager_of("linux", account, {"XDG_CONFIG_HOME": "/x"}, has_systemd=True)
    assert there.file("a") == Path("/x/systemd/user/tandem-worker-a.service")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for units of systemd")
def test_stop_says_that_a_service_begins_again(machine, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda _: "/bin/systemctl")
    here = machine()
    file = tmp_path / "systemd" / "user" / "tandem-worker-studio.service"
    file.parent.mkdir(parents=True)
    file.write_bytes(here.manager.text(SERVICE._replace(home=here.home.root)))
    assert main(["stop"]) == 0
    assert "Worker studio is a service and begins again" in capsys.readouterr().out
    file.unlink()
    assert main(["stop"]) == 0
    assert "service" not in capsys.readouterr().out
