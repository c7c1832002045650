"""What `token` and `worker --join` take, say and refuse, before anything is started."""

import ipaddress

import msgspec
import pytest

from cluster.cli import doctor, tokens
from cluster.cli.joining import endpoint_in, guest_process
from cluster.cli.main import main
from cluster.cli.session import open_session
from cluster.membership.invitations import Invitation
from protocol.errors import UsageError
from protocol.home import DesiredState, Home
from protocol.join_token import ID_CHARACTERS, make_id, make_secret, make_token, read_token
from protocol.joined import remember_joined

KEY = "k" * 40
TOKEN = make_token(KEY, make_id() + make_secret())


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def started(home, monkeypatch):
    """A cluster was started in this home, on a machine with two addresses."""
    home.write_desired(DesiredState(incarnation=1, secret="s", port=4711, public_key=KEY, secret_key="x"))
    settings = open_session().settings().settings
    monkeypatch.setattr("cluster.cli.session.Session.running_settings", lambda _: settings)
    own = {ipaddress.ip_interface(text): "en0" for text in ("10.0.0.1/24", "192.168.7.1/24", "fd00::1/64")}
    monkeypatch.setattr(tokens, "own_networks", lambda: own)
    return home


def guest_for(session, **given):
    wanted = {"address": "mac:1", "token": None, "name": None, "memory_limit": None} | given
    return guest_process(session, environment={"HF_HOME": "/hf"}, find=lambda key: f"tcp://found-{key[0]}:1", **wanted)


def options_of(guest):
    return dict(zip(guest.arguments, guest.arguments[1:], strict=False))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604800)])
def test_times_are_a_number_and_a_unit(text, seconds):
    assert tokens.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "0h", "-1h", "1.5h", "1w", "1h ", "\uff19h"])
def test_other_times_are_refused(text):
    with pytest.raises(UsageError, match="is no time"):
        tokens.duration_s(text)


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("10.0.0.1:53211", "tcp://10.0.0.1:53211"),
        ("tcp://mac.local:1", "tcp://mac.local:1"),
        ("[fd00::1]:65535", "tcp://[fd00::1]:65535"),
    ],
)
def test_address_is_a_host_and_a_port(address, endpoint):
    assert endpoint_in(address) == endpoint


@pytest.mark.parametrize("address", ["", "mac", "mac:", "mac:0", "mac:65536", "ipc:///x", "a/b:1", "mac:1 "])
def test_other_addresses_are_refused_with_where_to_find_one(address):
    with pytest.raises(UsageError, match="token new"):
        endpoint_in(address)


def test_token_names_no_excluded_address(started, monkeypatch, capsys):
    settings = open_session().running_settings()
    for exclude, addresses in ((("10.0.0.0/8",), ["192.168.7.1"]), (("en0",), [])):
        links = msgspec.structs.replace(settings.links, exclude=exclude)
        changed = msgspec.structs.replace(settings, links=links)
        monkeypatch.setattr("cluster.cli.session.Session.running_settings", lambda _, changed=changed: changed)
        assert main(["token", "new"]) == (0 if addresses else 1)
        said = capsys.readouterr()
        assert [line.partition("--join ")[2].partition(":")[0] for line in said.out.splitlines()] == addresses
    assert "links.exclude leave none of its addresses" in said.err


def test_worker_keeps_to_the_links_of_this_machine(home, monkeypatch):
    settings = open_session().settings()
    links = msgspec.structs.replace(settings.settings.links, prefer=("en5", "10.0.0.2"), exclude=("en0",))
    changed = msgspec.structs.replace(settings, settings=msgspec.structs.replace(settings.settings, links=links))
    monkeypatch.setattr("cluster.cli.session.Session.settings", lambda _: changed)
    given = " ".join(guest_for(open_session(), token=TOKEN).arguments)
    assert "--listen * --prefer en5 --prefer 10.0.0.2 --exclude en0" in given


def test_doctor_names_the_interfaces_of_the_configuration_that_are_none(home, monkeypatch):
    settings = open_session().settings()
    links = msgspec.structs.replace(settings.settings.links, prefer=("en0",), exclude=("en7", "10.0.0.0/8"))
    changed = msgspec.structs.replace(settings, settings=msgspec.structs.replace(settings.settings, links=links))
    monkeypatch.setattr("cluster.cli.session.Session.settings", lambda _: changed)
    monkeypatch.setattr(doctor, "own_networks", lambda: {ipaddress.ip_interface("10.0.0.1/24"): "en0"})
    (finding,) = doctor._link_names(open_session())
    assert finding.verdict == "warning"
    assert "names en7," in finding.text


def test_new_token_is_a_whole_command_for_each_address(started, capsys):
    assert main(["token", "new"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    start = "./launch.sh worker --join 10.0.0.1:4711 --token "
    assert first.startswith(start)
    assert "192.168.7.1:4711" in second
    key, secret = read_token(first.removeprefix(start))
    assert key == KEY
    assert main(["token", "list"]) == 0
    assert secret[:ID_CHARACTERS] in capsys.readouterr().out
    assert main(["token", "revoke", secret[:ID_CHARACTERS]]) == 0
    capsys.readouterr()
    assert main(["token", "list"]) == 0
    assert capsys.readouterr().out == "no tokens\n"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["token", "new"], 1, "No cluster was started here yet"),
        (["token", "new", "--expires", "soon"], 2, "is no time"),
        (["token", "new", "--uses", "0"], 2, "range"),
        (["token", "revoke", "12345678"], 2, "There is no token 12345678"),
        (["worker", "--join", "mac:1", "--token", "abc"], 2, "copy it whole"),
        (["worker", "--join", "mac", "--token", TOKEN], 2, "is no HOST:PORT"),
        (["worker"], 2, "needs --join ADDRESS"),
        (["worker", "--join", "mac:1"], 2, "has not joined a cluster yet; give the --token"),
        (["worker", "--install-service", "--background"], 2, "exclude each other"),
        (["worker", "--join", "mac:1", "--token", TOKEN, "--name", "a/b"], 2, "must be letters"),
        (["worker", "--join", "mac:1", "--token", TOKEN, "--memory-limit", "much"], 2, "is no size"),
    ],
)
def test_what_is_wrong_is_said(arguments, exit_code, said, capsys):
    assert main(arguments) == exit_code
    assert said in capsys.readouterr().err


def test_worker_writes_its_log_as_its_own_machine_wants_it(home, monkeypatch):
    assert options_of(guest_for(open_session(), token=TOKEN))["--log-format"] == "text"
    monkeypatch.setenv("TANDEM_LOG_FORMAT", "json")
    assert options_of(guest_for(open_session(), token=TOKEN))["--log-format"] == "json"


def test_worker_is_started_without_its_token_in_the_arguments(home):
    session = open_session()
    guest = guest_for(session, address="mac:1", token=TOKEN, name="studio", memory_limit="2GB")
    assert not any(TOKEN in argument for argument in guest.arguments)
    assert guest.environment["TANDEM_TOKEN"] == TOKEN
    given = options_of(guest)
    assert given["--memory-limit"] == "2000000000"
    assert given["--listen"] == "*"
    assert given["--home"] == str(home.root)


@pytest.mark.usefixtures("home")
def test_cluster_of_the_token_is_looked_for_where_no_address_is_given():
    assert options_of(guest_for(open_session(), address="auto", token=TOKEN))["--join"] == f"tcp://found-{KEY[0]}:1"


def test_worker_that_was_let_in_before_needs_neither_token_nor_name(home):
    remember_joined(home, "studio", KEY, "tcp://mac:1")
    for address, endpoint in (("mac:1", "tcp://mac:1"), ("auto", f"tcp://found-{KEY[0]}:1")):
        guest = guest_for(open_session(), address=address)
        assert (guest.name, options_of(guest)["--join"]) == ("studio", endpoint)
        assert read_token(guest.environment["TANDEM_TOKEN"], may_lack_secret=True) == (KEY, "")
        assert not any(KEY in argument for argument in guest.arguments)


def test_tokens_are_listed_with_who_came_by_each():
    def token(uses, expires_at):
        return Invitation(digest="", uses=uses, made_at=0, expires_at=expires_at)

    lines = tokens.table({"aa": token(1, None), "bb": token(None, 5.0)}, {"aa": ["studio"], "cc": ["laptop"]}, now=9.0)
    assert [line.split() for line in lines[1:]] == [
        ["aa", "1", "-", "studio"],
        ["bb", "any", "expired", "-"],
        ["cc", "revoked", "-", "laptop"],
    ]
