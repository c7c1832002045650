"""The configuration: strict file, precedence, provenance."""

from pathlib import Path

import msgspec
import pytest

from cluster.cli.configuration import lines_of
from cluster.config import Flags, Resolved, load_settings, mode_from_environment, parse_size
from cluster.settings import KeySettings, RecoverySettings, Settings
from protocol.errors import UsageError
from protocol.values import KvSettings

CHECKOUT = Path(__file__).resolve().parents[2]


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None, **flags) -> Resolved:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load_settings(
        file, checkout=CHECKOUT, working_directory=tmp_path, environment=environment or {}, flags=Flags(**flags)
    )


def refused(tmp_path: Path, text: str, environment: dict[str, str] | None = None, **flags) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text, environment, **flags)
    return str(caught.value)


@pytest.mark.parametrize("file", sorted((CHECKOUT / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_shipped_configuration_loads(file):
    resolved = load_settings(file, checkout=CHECKOUT, working_directory=CHECKOUT, environment={}, flags=Flags())
    assert len(resolved.settings.workers) >= 2
    assert resolved.settings.model.path == str(CHECKOUT / "models" / "tandem-demo")


def test_default_is_two_local_workers_and_the_documented_values(tmp_path):
    settings = load(tmp_path, "").settings
    assert [worker.name for worker in settings.workers] == ["worker-0", "worker-1"]
    assert (settings.api.host, settings.api.port, settings.api.max_queue) == ("127.0.0.1", 8420, 256)
    assert (settings.strategy.prompt_threshold, settings.strategy.generation_threshold) == (100, 50)
    assert settings.strategy.use_distributed_inference == "auto"
    assert settings.model.path == str(CHECKOUT / "models/tandem-demo")


def test_flag_beats_environment_beats_file(tmp_path):
    text = "[api]\nport = 9001\n"
    assert load(tmp_path, text).settings.api.port == 9001
    assert load(tmp_path, text, {"TANDEM_PORT": "9002"}).settings.api.port == 9002
    resolved = load(tmp_path, text, {"TANDEM_PORT": "9002"}, port=9003)
    assert resolved.settings.api.port == 9003
    assert resolved.origins["api.port"] == "--port"
    assert resolved.origins["api.host"] == "default"


def test_origins_name_file_and_variable(tmp_path):
    origins = load(tmp_path, '[strategy]\npolicy = "thresholds"\n', {"USE_DISTRIBUTED_INFERENCE": "never"}).origins
    assert origins["strategy.policy"] == str(tmp_path / "c.toml")
    assert origins["strategy.use_distributed_inference"] == "environment USE_DISTRIBUTED_INFERENCE"


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("[api]\nprot = 1\n", "api.prot", "api.port"),
        ("[stratgey]\n", "stratgey", "strategy"),
        ("[strategy]\nprompt_treshold = 1\n", "strategy.prompt_treshold", "strategy.prompt_threshold"),
        ("[[worker]]\n", "worker", "workers"),
        ('[[workers]]\nmemory = "1GB"\n', "workers[0].memory", "workers[0].memory_limit"),
        ('[[hosts]]\naddress = "b"\nusre = "ben"\n', "hosts[0].usre", "hosts[0].user"),
        ("[[host]]\n", "host", "hosts"),
        ("[[hosts.x]]\n", "hosts", "[[hosts]]"),
        ("[[api.key]]\n", "api.key", "api.keys"),
        ('[[api.keys]]\nname = "a"\nkey = "k"\nmax_runing = 1\n', "api.keys[0].max_runing", "api.keys[0].max_running"),
        ('"api.keys" = []\n', "api.keys", "api"),
        ("zzz = 1\n", "zzz", "did you mean"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_right_one(tmp_path, text, wrong, right):
    message = refused(tmp_path, text)
    assert wrong in message
    assert right in message
    assert "c.toml" in message


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ('[api]\nport = "x"\n', "api.port", "1 to 65535"),
        ("[api]\nport = 70000\n", "api.port", "1 to 65535"),
        ("[api]\nport = true\n", "api.port", "1 to 65535"),
        ("[api]\nport = 1.5\n", "api.port", "1 to 65535"),
        ("[api]\nhost = 3\n", "api.host", "string"),
        ("api = 3\n", "api", "section"),
        ("[cache]\nprefix = 1\n", "cache.prefix", "true or false"),
        ('[cache]\nmemory_limit = "12 parsecs"\n', "cache.memory_limit", "12GB"),
        ('[[workers]]\nmemory_limit = "-1GB"\n', "workers[0].memory_limit", "12GB"),
        ("[[workers]]\nlayers = [4, 4]\n", "workers[0].layers", "start < end"),
        ("[[workers]]\nlayers = [-1, 4]\n", "workers[0].layers", "start < end"),
        ("[[workers]]\nlayers = [1]\n", "workers[0].layers", "start < end"),
        ("[[workers]]\nlayers = 7\n", "workers[0].layers", "start < end"),
        ('[[workers]]\nname = "a b"\n', "workers[0].name", "letters"),
        ("workers = []\n", "workers", "[[workers]]"),
        ("[hosts]\n", "hosts", "[[hosts]]"),
        ('[[hosts]]\nname = "b"\n', "hosts[0].address", "missing"),
        ('[[hosts]]\naddress = "-oProxyCommand=x"\n', "hosts[0].address", "without user or port"),
        ('[[hosts]]\naddress = "ben@mac2"\n', "hosts[0].address", "without user or port"),
        ('[[hosts]]\naddress = "b"\nuser = "-x"\n', "hosts[0].user", "a user's name"),
        ('[[hosts]]\naddress = "b"\nport = 0\n', "hosts[0].port", "1 to 65535"),
        ('[[hosts]]\naddress = "b"\nworkers = 0\n', "hosts[0].workers", "1 to 64"),
        ('[[hosts]]\naddress = "b"\nmemory_limit = "much"\n', "hosts[0].memory_limit", "12GB"),
        ('[[hosts]]\naddress = "local"\n', "hosts[0].name", "its own name"),
        ('[[hosts]]\naddress = "b"\n[[hosts]]\naddress = "b.local"\n', "hosts[1].name", "its own name"),
        ('[[hosts]]\naddress = "worker-0"\n', "hosts[0]", "like another"),
        ("[[groups]]\n", "groups[0].workers", "is missing"),
        ('[[groups]]\nworkers = ["worker-0"]\n', "groups[0].workers", "at least two names"),
        ('[[groups]]\nworkers = ["worker-0", "worker-0"]\n', "groups[0].workers", "one group, once"),
        ('[[groups]]\nworker = ["worker-0", "worker-1"]\n', "groups[0].worker", "groups[0].workers"),
        ('[[groups]]\nworkers = ["worker-0", "worker-1"]\nranks = 3\n', "groups[0].ranks is 3", "divide its 2 workers"),
        ('[[groups]]\nworkers = ["worker-0", "worker-1"]\nranks = 1\n', "groups[0].ranks", "at least 2"),
        ('[[groups]]\nworkers = ["worker-0", "worker-1"]\ntransport = "mpi"\n', "groups[0].transport", "'mpi'"),
        ("[strategy]\nprompt_threshold = -1\n", "strategy.prompt_threshold", "at least 0"),
        ('[strategy]\nuse_distributed_inference = "sometimes"\n', "'sometimes'", "auto, always or never"),
        ('[strategy]\npolicy = "best"\n', "'best'", "must be thresholds or measured"),
        ("[recovery]\nwait_s = -1\n", "recovery.wait_s", "number of seconds"),
        ("[recovery]\nwait_s = nan\n", "recovery.wait_s", "number of seconds"),
        ("[recovery]\norphan_s = inf\n", "recovery.orphan_s", "number of seconds"),
        ('[recovery]\norphan_s = "1"\n', "recovery.orphan_s", "number of seconds"),
        ("[recovery]\nkv_copies = 2\n", "recovery.kv_copies", "0 or 1"),
        ("[recovery]\nkv_copies = true\n", "recovery.kv_copies", "0 or 1"),
        ("[engine]\nprefill_chunk = 0\n", "engine.prefill_chunk", "at least 1"),
        ('[engine]\ntrace = ""\n', "engine.trace", "not empty"),
        ("[kv_cache]\nkeep = -1\n", "kv_cache.keep", "at least 0"),
        ('[kv_cache]\nadaptive = "yes"\n', "kv_cache.adaptive", "true or false"),
    ],
)
def test_wrong_value_names_key_and_expectation(tmp_path, text, key, expected):
    message = refused(tmp_path, text)
    assert key in message
    assert expected in message


def test_policy_and_objective_are_settings_and_thresholds_the_default(tmp_path):
    assert load(tmp_path, "").settings.strategy.policy == "thresholds"
    found = load(tmp_path, '[strategy]\nobjective = "ttft"\n', {"TANDEM_STRATEGY_POLICY": "measured"}).settings.strategy
    assert (found.policy, found.objective) == ("measured", "ttft")


def test_damaged_or_missing_file_is_one_sentence(tmp_path):
    assert "not valid TOML" in refused(tmp_path, "[api")
    with pytest.raises(UsageError, match="does not exist"):
        load_settings(
            tmp_path / "none.toml", checkout=CHECKOUT, working_directory=tmp_path, environment={}, flags=Flags()
        )
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        load_settings(
            tmp_path / "bytes.toml", checkout=CHECKOUT, working_directory=tmp_path, environment={}, flags=Flags()
        )


@pytest.mark.parametrize("value", ["", "AUTO", "yes", "auto "])
def test_unknown_mode_in_the_environment_names_value_and_the_three(value):
    with pytest.raises(UsageError) as caught:
        mode_from_environment({"USE_DISTRIBUTED_INFERENCE": value})
    assert repr(value) in str(caught.value)
    assert "auto, always or never" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "listen"), [("all", "all"), ("127.0.0.1", ("127.0.0.1",)), ("10.0.0.1, ::1", ("10.0.0.1", "::1"))]
)
def test_addresses_in_the_environment_have_commas_between_them(tmp_path, text, listen):
    resolved = load(tmp_path, '[links]\nlisten = "all"\n', {"TANDEM_LISTEN": text})
    assert resolved.settings.links.listen == listen
    assert resolved.origins["links.listen"] == "environment TANDEM_LISTEN"


def test_no_address_in_the_environment_is_refused(tmp_path):
    assert refused(tmp_path, "", {"TANDEM_LISTEN": ""}).startswith("TANDEM_LISTEN")


def test_mode_in_the_environment_is_none_when_not_set():
    assert mode_from_environment({}) is None
    assert mode_from_environment({"USE_DISTRIBUTED_INFERENCE": "never"}) == "never"


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GB", 12 * 10**9), ("512 MB", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("4096", 4096), ("1t", 10**12), ("7B", 7)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "12XB", "1e3", "12iB", "-5"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the caller words the message
        parse_size(text)


def test_workers_flag_replaces_the_list_and_keeps_limits_of_the_first(tmp_path):
    text = '[[workers]]\nname = "a"\nmemory_limit = "1GB"\nlayers = [0, 3]\n[[workers]]\nname = "b"\n'
    three = load(tmp_path, text, workers=3)
    assert [(worker.name, worker.memory_limit, worker.layers) for worker in three.settings.workers] == [
        ("worker-0", 10**9, None),
        ("worker-1", None, None),
        ("worker-2", None, None),
    ]
    assert three.origins["workers[0].memory_limit"].endswith("c.toml")
    assert three.origins["workers[0].layers"] == "default"
    assert len(load(tmp_path, text, workers=1).settings.workers) == 1
    assert "at least 1" in refused(tmp_path, text, workers=0)


def test_other_hosts_and_repeated_names_are_refused(tmp_path):
    assert "are started by [[hosts]]" in refused(tmp_path, '[[workers]]\nhost = "mac-2"\n')
    assert "twice" in refused(tmp_path, '[[workers]]\nname = "a"\n[[workers]]\nname = "a"\n')


def test_open_host_needs_a_key(tmp_path):
    assert "api_key" in refused(tmp_path, '[api]\nhost = "0.0.0.0"\n')
    assert load(tmp_path, '[api]\nhost = "0.0.0.0"\napi_key = "k"\n').settings.api.host == "0.0.0.0"


TWO_KEYS = """
[api]
api_key = "first"
[[api.keys]]
name = "ann"
key = "secret-a"
max_running = 2
tokens_per_minute = 1000
[[api.keys]]
name = "ben"
key = "secret-b"
"""


def test_keys_have_names_and_limits_and_are_never_shown(tmp_path):
    resolved = load(tmp_path, TWO_KEYS)
    assert resolved.settings.api.keys == (
        KeySettings(name="ann", key="secret-a", max_running=2, tokens_per_minute=1000),
        KeySettings(name="ben", key="secret-b"),
    )
    assert msgspec.json.decode(msgspec.json.encode(resolved.settings), type=Settings) == resolved.settings
    lines = lines_of(resolved, {})
    shown = {line.partition(" = ")[0]: line.partition(" = ")[2].partition("  #")[0].strip() for line in lines}
    assert (shown["api.keys[0].name"], shown["api.keys[0].key"], shown["api.keys[0].max_running"]) == (
        '"ann"',
        "(set)",
        "2",
    )
    assert (shown["api.api_key"], shown["api.keys[1].tokens_per_minute"]) == ("(set)", "(not set)")
    assert "secret" not in "".join(lines)
    assert "first" not in "".join(lines)
    assert "api.keys" not in shown
    assert resolved.origins["api.keys[0].key"] == str(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ('[[api.keys]]\nkey = "secret"\n', "api.keys[0].name is missing"),
        ('[[api.keys]]\nname = "ann"\n', "api.keys[0].key is missing"),
        ('[[api.keys]]\nname = "ann"\nkey = "secret secret"\n', "api.keys[0].key must be 1 to 1024 printable"),
        ('[[api.keys]]\nname = "ann"\nkey = "secret"\nmax_running = 0\n', "api.keys[0].max_running must be"),
        ('[[api.keys]]\nname = "a b"\nkey = "secret"\n', "api.keys[0].name must be letters"),
        ('[[api.keys]]\nname = "ann"\nkey = "first"\n', "give ann a key of its own"),
        ('keys = ["secret"]\n', "api.keys must be one or more [[api.keys]] sections"),
        ("".join(f'[[api.keys]]\nname = "ann"\nkey = "secret{index}"\n' for index in "ab"), "'ann' is used twice"),
        (
            "".join(f'[[api.keys]]\nname = "ann{index}"\nkey = "secret"\n' for index in "ab"),
            "give annb a key of its own",
        ),
    ],
)
def test_keys_that_are_wrong_are_refused_by_what_is_wrong_and_not_shown(tmp_path, tables, said):
    message = refused(tmp_path, f'[api]\napi_key = "first"\n{tables}')
    assert said in message
    assert "secret" not in message


def test_named_key_is_enough_for_an_open_host(tmp_path):
    text = '[api]\nhost = "0.0.0.0"\n[[api.keys]]\nname = "ann"\nkey = "k"\n'
    assert load(tmp_path, text).settings.api.host == "0.0.0.0"


def test_model_is_served_under_the_name_that_is_given_and_aliases(tmp_path):
    text = '[model]\nserved_name = "org/mine"\n[api]\naliases = ["gpt-4o", "*"]\n'
    settings = load(tmp_path, text).settings
    assert (settings.model.served_name, settings.api.aliases) == ("org/mine", ("gpt-4o", "*"))
    resolved = load(tmp_path, text, served_model_name="other")
    assert (resolved.settings.model.served_name, resolved.origins["model.served_name"]) == (
        "other",
        "--served-model-name",
    )
    assert "api.aliases must be a list of names" in refused(tmp_path, '[api]\naliases = ["a b"]\n')
    assert "--served-model-name: model.served_name must be 1 to 256" in refused(tmp_path, "", served_model_name="")


def test_origins_of_pages_are_whole_and_without_a_path(tmp_path):
    text = '[api]\ncors = ["https://app.example", "http://localhost:3000", "app://obsidian.md"]\n'
    assert load(tmp_path, text).settings.api.cors[2] == "app://obsidian.md"
    assert load(tmp_path, '[api]\ncors = ["*"]\n').settings.api.cors == ("*",)
    for wrong in ("app.example", "https://app.example/", "https://App.example", "https://*.example /"):
        assert "api.cors must be a list of origins" in refused(tmp_path, f'[api]\ncors = ["{wrong}"]\n')


def test_model_path_starts_at_the_file_or_the_working_directory(tmp_path):
    (tmp_path / "m").mkdir()
    assert load(tmp_path, '[model]\npath = "m"\n').settings.model.path == str(tmp_path / "m")
    assert load(tmp_path, "", model="./m").settings.model.path == str(tmp_path / "m")
    assert load(tmp_path, "", model="org/name").settings.model.path == "org/name"
    assert load(tmp_path, "", model="/no/such").settings.model.path == "/no/such"


def test_settings_survive_json(tmp_path):
    settings = load(tmp_path, '[[workers]]\nlayers = [0, 3]\nmemory_limit = "1GB"\n').settings
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


def test_flag_chooses_the_kind_of_cache_and_unknown_kinds_are_refused(tmp_path):
    assert load(tmp_path, "", kv_cache="static").settings.kv_cache.kv == KvSettings(kind="static")
    message = refused(tmp_path, "", kv_cache="elastic")
    assert "--kv-cache: kv_cache.kind must be dynamic, static, rotating" in message


@pytest.mark.parametrize("environment", [{}, {"TANDEM_STRATEGY_POLICY": "guessed"}])
def test_policy_that_does_not_exist_is_refused_with_what_exists(tmp_path, environment):
    text = "" if environment else '[strategy]\npolicy = "guessed"\n'
    message = refused(tmp_path, text, environment)
    assert "strategy.policy must be thresholds or measured, not 'guessed'" in message
    assert message.startswith("TANDEM_STRATEGY_POLICY" if environment else str(tmp_path))


def test_recovery_has_the_documented_values_and_takes_others(tmp_path):
    assert load(tmp_path, "").settings.recovery == RecoverySettings(wait_s=60, kv_copies=0, orphan_s=120)
    given = "[recovery]\nwait_s = 0\nkv_copies = 1\norphan_s = 2.5\n"
    assert load(tmp_path, given).settings.recovery == RecoverySettings(wait_s=0, kv_copies=1, orphan_s=2.5)


def test_settings_of_the_engine_come_from_file_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path, "").settings.engine.trace is None
    text = '[engine]\nprefill_chunk = 64\ntrace = "t.json"\n'
    from_file = load(tmp_path, text).settings.engine
    assert (from_file.prefill_chunk, from_file.trace) == (64, str(tmp_path / "t.json"))
    resolved = load(tmp_path, text, {"TANDEM_PREFILL_CHUNK": "32", "TANDEM_TRACE": "/tmp/other.json"})
    assert (resolved.settings.engine.prefill_chunk, resolved.settings.engine.trace) == (32, "/tmp/other.json")
    assert resolved.origins["engine.prefill_chunk"] == "environment TANDEM_PREFILL_CHUNK"
    message = refused(tmp_path, "", {"TANDEM_PREFILL_CHUNK": "many"})
    assert "TANDEM_PREFILL_CHUNK: engine.prefill_chunk must be a whole number of at least 1, not 'many'" in message


def test_format_of_the_logs_comes_from_flag_environment_and_file(tmp_path):
    assert load(tmp_path, "").settings.logs.format == "text"
    text, environment = '[logs]\nformat = "json"\n', {"TANDEM_LOG_FORMAT": "json"}
    assert load(tmp_path, text).settings.logs.format == "json"
    assert load(tmp_path, "", environment).settings.logs.format == "json"
    resolved = load(tmp_path, text, environment, log_format="text")
    assert (resolved.settings.logs.format, resolved.origins["logs.format"]) == ("text", "--log-format")
    assert "TANDEM_LOG_FORMAT: logs.format must be text or json, not 'xml'" in refused(
        tmp_path, "", {"TANDEM_LOG_FORMAT": "xml"}
    )


def test_keys_of_the_cache_stand_beside_adaptive(tmp_path):
    text = '[kv_cache]\nkind = "quantized"\nkey_bits = 8\nvalue_bits = 4\nadaptive = true\n'
    resolved = load(tmp_path, text)
    assert resolved.settings.kv_cache.kv == KvSettings(kind="quantized", key_bits=8, value_bits=4)
    assert resolved.settings.kv_cache.adaptive
    assert (resolved.value("kv_cache.kind"), resolved.value("kv_cache.adaptive")) == ("quantized", True)
    assert "did you mean kv_cache.adaptive?" in refused(tmp_path, "[kv_cache]\nadaptve = true\n")
    assert "unknown key kv_cache.kv;" in refused(tmp_path, "[kv_cache]\nkv = 1\n")


def test_every_key_has_an_origin_and_a_value(tmp_path):
    resolved = load(tmp_path, "[[workers]]\nlayers = [0, 3]\n")
    assert resolved.value("workers[0].layers") == (0, 3)
    for key in resolved.origins:
        resolved.value(key)
    assert {key.partition(".")[0] for key in resolved.origins} == {*Settings.__struct_fields__, "workers[0]"} - {
        "workers",
        "hosts",
        "groups",
        "allow_mixed",
    }


def test_groups_are_of_workers_here_on_hosts_and_of_guests(tmp_path):
    text = (
        '[[hosts]]\naddress = "mac2.local"\n[[groups]]\nworkers = ["worker-1", "mac2", "studio"]\ntransport = "jaccl"\n'
    )
    resolved = load(tmp_path, text)
    assert resolved.settings.groups[0].workers == ("worker-1", "mac2", "studio")
    assert resolved.settings.groups[0].transport == "jaccl"
    assert resolved.origins["groups[0].workers"] == str(tmp_path / "c.toml")


def test_hosts_have_names_of_their_own_and_their_workers_too(tmp_path):
    text = """
        [[hosts]]
        address = "mac2.local"
        [[hosts]]
        address = "10.0.0.7"
        name = "studio"
        user = "ben"
        port = 2222
        checkout = "~/Code/my tandem"
        python = "/opt/python"
        workers = 2
        memory_limit = "8GB"
        [[hosts]]
        address = "10.0.0.8"
    """
    resolved = load(tmp_path, text)
    mac2, studio, numbered = resolved.settings.hosts
    assert (mac2.name, mac2.worker_names, mac2.checkout, mac2.user, mac2.port) == (
        "mac2", ("mac2",), "~/tandem", None, None,
    )  # fmt: skip
    assert studio.worker_names == ("studio-0", "studio-1")
    assert (studio.user, studio.port, studio.checkout, studio.python) == (
        "ben",
        2222,
        "~/Code/my tandem",
        "/opt/python",
    )
    assert (studio.memory_limit, numbered.name) == (8 * 10**9, "10.0.0.8")
    assert (resolved.value("hosts[1].port"), resolved.value("hosts[0].workers")) == (2222, 1)
    assert resolved.origins["hosts[1].port"].endswith("c.toml")
    assert resolved.origins["hosts[0].port"] == "default"
    assert msgspec.json.decode(msgspec.json.encode(resolved.settings), type=Settings) == resolved.settings
    assert [worker.name for worker in load(tmp_path, text, workers=1).settings.workers] == ["worker-0"]


def test_links_are_preferred_and_excluded_by_address_network_or_interface(tmp_path):
    text = '[links]\nprefer = ["10.0.0.2", "en5"]\nexclude = ["192.168.0.0/16"]\n'
    names = load(tmp_path, text).settings.links.names
    assert (names.prefer, names.exclude) == (("10.0.0.2", "en5"), ("192.168.0.0/16",))


@pytest.mark.parametrize("wrong", ['"en0"', '["10.0.0.1/24"]', '["10.0.0"]', '["en0", ""]', "[7]"])
@pytest.mark.parametrize("key", ["prefer", "exclude"])
def test_what_names_no_link_is_refused(tmp_path, key, wrong):
    said = refused(tmp_path, f"[links]\n{key} = {wrong}\n")
    assert f"links.{key} must be a list of addresses, networks such as" in said


@pytest.mark.parametrize("word", ["auto", "off", "lookup"])
def test_who_guesses_is_a_word_or_a_model_found_from_the_file_on(tmp_path, word):
    assert load(tmp_path, "").settings.speculation.draft == "auto"
    assert load(tmp_path, f'[speculation]\ndraft = "{word}"\n').settings.speculation.draft == word
    drafts = load(tmp_path, '[speculation]\ndraft = "./drafts/small"\n').settings.speculation.draft
    assert drafts == str(tmp_path / "drafts" / "small")
    assert load(tmp_path, '[speculation]\ndraft = "org/small"\n').settings.speculation.draft == "org/small"
    assert "speculation.draft must be" in refused(tmp_path, "[speculation]\ndraft = 3\n")
