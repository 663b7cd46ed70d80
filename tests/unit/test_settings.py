"""Settings: where they come from, and what becomes of mistakes."""

from __future__ import annotations

import re

import pytest

from relmsg.errors import SettingsError
from relmsg.settings import Settings, amqp_urls, redact, schema_name


def test_without_anything_the_defaults_hold():
    """Nothing has to be set for the defaults of the design to hold."""
    settings = Settings.load({}, {})
    assert (settings.schema, settings.batch, settings.window, settings.probes) == (
        "relmsg",
        500,
        2000,
        "127.0.0.1:9808",
    )
    assert settings.database_url is None


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    """A flag wins over a variable, a variable over the file, the file over the default."""
    file = tmp_path / "relmsg.toml"
    file.write_text('batch = 1\nwindow = 1\nprefetch = 1\nschema = "a b"\nlease = 20\n')
    environ = {"RELMSG_CONFIG": str(file), "RELMSG_BATCH": "2", "RELMSG_WINDOW": "2"}
    settings = Settings.load({"batch": 3, "window": None}, environ)
    assert (settings.batch, settings.window, settings.prefetch, settings.heartbeat) == (3, 2, 1, 10)
    assert (settings.schema, settings.lease, settings.config) == ("a b", 20.0, str(file))


def test_the_flag_config_wins_over_its_variable(tmp_path):
    """--config names the file even where RELMSG_CONFIG names another."""
    for name, batch in (("a", 1), ("b", 2)):
        (tmp_path / name).write_text(f"batch = {batch}")
    settings = Settings.load({"config": str(tmp_path / "a")}, {"RELMSG_CONFIG": str(tmp_path / "b")})
    assert settings.batch == 1


def test_all_mistakes_are_told_at_once(tmp_path):
    """One error names every mistake in file, environment and flags, on one line."""
    file = tmp_path / "relmsg.toml"
    file.write_text("bacth = 1\n[relay]\nlease = 1\n")
    environ = {"RELMSG_DATABSE_URL": "x", "RELMSG_LEASE": "soon", "RELMSG_PROBES": "9808", "OTHER": "x"}
    with pytest.raises(SettingsError) as told:
        Settings.load({"config": str(file), "poll_min": -1}, environ)
    text = str(told.value)
    for part in (
        "'bacth', did you mean batch?",
        "'relay'",
        "RELMSG_DATABSE_URL, did you mean RELMSG_DATABASE_URL?",
        "RELMSG_LEASE: 'soon' is not a number of seconds from 1 to 3,600",
        "RELMSG_PROBES: '9808' is not host:port",
        "--poll-min: -1 is not a number of seconds",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH", "0"),
        ("BATCH", "1.5"),
        ("BATCH", ""),
        ("BATCH", "nan"),
        ("POLL_MAX", "nan"),
        ("POLL_MAX", "inf"),
        ("DATABASE_URL", "mysql://u:p@h/d"),
        ("DATABASE_URL", "postgresql://u:p@h:port/d"),
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "postgresql://u:a b@h/d"),
        ("AMQP_URL", "amqp://u:a b@h"),
        ("AMQP_URL", "http://h"),
        ("AMQP_URL", "amqp://h1,,h2"),
        ("MANAGEMENT_URL", "h:15672"),
        ("PROBES", "localhost:99999"),
        ("SCHEMA", "pg_mine"),
        ("SCHEMA", ""),
        ("RELAY_NAME", "two\nlines"),
        ("COORDINATOR", "yes"),
        ("HALF_CHECK_AFTER", "0"),
        ("HALF_MAX_CHECKS", "0"),
        ("HALF_CHECK_RATE", "0.5"),
        ("HALF_RETENTION", "59"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_by_name(name, value):
    """Every value has a rule, and what breaks it is refused with the variable's name."""
    with pytest.raises(SettingsError, match=f"RELMSG_{name}: "):
        Settings.load({}, {f"RELMSG_{name}": value})


@pytest.mark.parametrize(
    "line", ["batch = true", "batch = [1]", "batch = 1.5", "schema = 5", "config = 'x'", "batch ="]
)
def test_a_value_of_the_wrong_kind_in_the_file_is_refused(tmp_path, line):
    """TOML has types of its own; a wrong one is a mistake like any other."""
    file = tmp_path / "relmsg.toml"
    file.write_text(line)
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        Settings.load({"config": str(file)}, {})


def test_a_missing_file_is_a_mistake():
    """A settings file that is named and cannot be read is not passed over."""
    with pytest.raises(SettingsError, match="cannot read the settings file /no/such"):
        Settings.load({"config": "/no/such"}, {})


def test_values_that_contradict_each_other_are_refused():
    """A lease that one late renewal loses, and a shortest wait over the longest, are mistakes."""
    with pytest.raises(SettingsError, match=r"poll_min .* poll_max .*; renew .* lease"):
        Settings.load({"poll_min": 2, "renew": 10}, {})


@pytest.mark.parametrize("variable", ["RELMSG_FAILPOINTS", "RELMSG_LOCAL_STATE"])
def test_variables_of_relmsg_that_are_no_settings_are_let_through(variable):
    """What other parts of relmsg read from the environment is not unknown."""
    Settings.load({}, {variable: "x"})


def test_empty_probes_turn_them_off_and_port_zero_takes_any():
    """An empty text and port 0 are valid addresses of the probes."""
    assert Settings.load({}, {"RELMSG_PROBES": ""}).probes == ""
    assert Settings.load({}, {"RELMSG_PROBES": "[::]:0"}).probes == "[::]:0"


def test_each_process_has_a_relay_name_of_its_own():
    """Two relays in equal containers do not take each other for themselves."""
    assert Settings.load({}, {}).relay_name != Settings.load({}, {}).relay_name


def test_what_is_needed_and_missing_is_named():
    """A verb that needs a service says which variable names it."""
    with pytest.raises(SettingsError, match="RELMSG_DATABASE_URL"):
        Settings().database()
    with pytest.raises(SettingsError, match="RELMSG_AMQP_URL"):
        Settings().broker()


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("amqp://h", ["amqp://h"]),
        ("amqp://u:p@h1:5672,h2:5673/vhost", ["amqp://u:p@h1:5672/vhost", "amqp://u:p@h2:5673/vhost"]),
        ("amqps://u:p@h1,h2/?heartbeat=5", ["amqps://u:p@h1/?heartbeat=5", "amqps://u:p@h2/?heartbeat=5"]),
        ("amqp://u:p,q@h1, h2", ["amqp://u:p,q@h1", "amqp://u:p,q@h2"]),
        ("amqp://[::1]:5672,h/%2F", ["amqp://[::1]:5672/%2F", "amqp://h/%2F"]),
    ],
)
def test_several_hosts_become_several_urls(text, urls):
    """A list of hosts becomes one URL a host, in that order."""
    assert amqp_urls(text) == urls


SECRET = "ge-heim"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+asyncpg://u:{SECRET}@h:5432/d",
        f"postgresql://:{SECRET}@h/d",
        f"postgresql://u@h/d?password={SECRET}&x=1",
        f"amqp://u:{SECRET}@h1:5672,h2:5673/v",
        f"amqp://u:a@b{SECRET}@h",
        f"amqp://u:a/b{SECRET}@h",
        f"amqp://u:a#b{SECRET}@h",
        f"amqp://u:a:b{SECRET}@h",
        f"<amqp:///u:{SECRET}@h>",
        f"amqp:/u:{SECRET}@h",
        f"u:{SECRET}@h",
        f"url='u:{SECRET}@h'",
        f"see http://u:{SECRET}@h and http://v:{SECRET}@h",
    ],
)
def test_no_password_survives_redaction(url):
    """However badly a password is escaped, it is not shown, and the host is."""
    assert SECRET not in redact(url)
    assert "h" in redact(url)


@pytest.mark.parametrize("url", ["amqp://h:5672/v", "postgresql://u@h:5432/d", "no url: a@b"])
def test_redaction_leaves_the_rest_alone(url):
    """A text without a password stays as it is."""
    assert redact(url) == url


@pytest.mark.parametrize("name", ["database_url", "amqp_url", "management_url"])
@pytest.mark.parametrize(
    "url",
    [
        "{}://u:a/b" + SECRET + "@h:5432/d",
        "{}://u:" + SECRET + "@h:port/d",
        "x{}://u:" + SECRET + "@h/d",
        "u:" + SECRET + "@h",
        "{}://u:a " + SECRET + "@h/d",
    ],
)
def test_no_error_about_a_url_shows_its_password(name, url):
    """Neither an error nor the repr of the settings shows a password."""
    scheme = {"database_url": "postgresql", "amqp_url": "amqp", "management_url": "http"}[name]
    try:
        shown = repr(Settings.load({name: url.format(scheme)}, {}))
    except SettingsError as error:
        shown = str(error)
    assert SECRET not in shown


def test_the_repr_hides_passwords_and_shows_the_rest():
    """The repr of the settings can be logged."""
    shown = repr(Settings(amqp_url=f"amqp://u:{SECRET}@h", batch=7))
    assert "amqp://u:***@h" in shown
    assert "batch=7" in shown


@pytest.mark.parametrize("name", ["relmsg", 'we"ird sch:em%a', "Ümlaut.x", "'; drop", "x" * 63])
def test_any_printable_schema_name_is_fine(name):
    """A schema may have any name PostgreSQL can keep."""
    assert schema_name(name) == name


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "x" * 64, "ü" * 32, "\udcff", "pg_x", "information_schema"])
def test_schema_names_that_postgresql_cannot_keep_are_refused(name):
    """What PostgreSQL would cut, refuse or reserve is refused before."""
    with pytest.raises(SettingsError, match="schema"):
        schema_name(name)


def test_service_links_of_kubernetes_are_no_settings() -> None:
    """What Kubernetes puts into a pod for a Service called relmsg or relmsg-relay is left alone."""
    links = {
        "RELMSG_SERVICE_HOST": "10.0.0.1",
        "RELMSG_SERVICE_PORT": "80",
        "RELMSG_PORT": "tcp://10.0.0.1:80",
        "RELMSG_RELAY_SERVICE_PORT_METRICS": "9808",
        "RELMSG_RELAY_PORT_9808_TCP": "tcp://10.0.0.1:9808",
        "RELMSG_RELAY_PORT_9808_TCP_ADDR": "10.0.0.1",
    }
    assert Settings.load({}, links).schema == "relmsg"


def test_an_unescaped_at_in_a_password_is_told_and_not_shown() -> None:
    """The part of a password behind an @ would otherwise be taken for the host, and be shown."""
    with pytest.raises(SettingsError, match="%40") as told:
        Settings.load({"database_url": "postgresql://postgres:s3cr@et@127.0.0.1:1/x"}, {})
    assert "et@" not in str(told.value)
    assert "s3cr" not in str(told.value)


@pytest.mark.parametrize(("text", "value"), [("on", True), ("True", True), ("off", False), ("FALSE", False)])
def test_a_switch_is_on_or_off(text, value):
    """Listening is on unless it is turned off, in the words of the environment."""
    assert Settings.load({}, {}).listen is True
    assert Settings.load({}, {"RELMSG_LISTEN": text}).listen is value


def test_a_switch_in_a_file_is_a_truth_value(tmp_path):
    """TOML has true and false; another word, or a number, is refused with the words that are known."""
    file = tmp_path / "relmsg.toml"
    file.write_text("listen = false\n")
    assert Settings.load({"config": str(file)}, {}).listen is False
    for text in ("listen = 1", "listen = 'maybe'"):
        file.write_text(text)
        with pytest.raises(SettingsError, match=r"listen: .* is not on, off, true or false"):
            Settings.load({"config": str(file)}, {})


@pytest.mark.parametrize(
    "variable", ["RELMSG_AMQP_URL", "RELMSG_DATABASE_URL", "RELMSG_MANAGEMENT_URL", "RELMSG_SCHEMA", "RELMSG_BATCH"]
)
@pytest.mark.parametrize(("end", "word"), [("\r", "carriage return"), ("\r\n", "carriage return"), ("\n", "line feed")])
def test_the_end_of_a_line_in_a_setting_is_told_in_words(variable, end, word):
    """A settings file from Windows leaves an end of line that no terminal shows: it is named, and no password is."""
    values = {"RELMSG_AMQP_URL": "amqp://me:secret@h/", "RELMSG_DATABASE_URL": "postgresql://me:secret@h/d"}
    with pytest.raises(SettingsError) as told:
        Settings.load({}, {variable: values.get(variable, "7") + end})
    text = str(told.value)
    assert text.startswith(variable)
    assert word in text
    assert "secret" not in text
    assert text.isprintable()


def test_an_amqp_url_in_code_is_held_to_the_same_rule():
    """Publisher, HalfProducer and Inbox read their URL as the settings do."""
    with pytest.raises(SettingsError, match="carriage return"):
        amqp_urls("amqp://me:secret@h/\r")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\xef\xbb\xbfbatch = 1\n", "byte order mark"),
        ("batch = 1\n".encode("utf-16"), "UTF-16"),
        ("batch = 1\n".encode("utf-16-be"), "not TOML"),
        (b"\xffbatch = 1\n", "not TOML"),
    ],
)
def test_a_file_in_another_encoding_is_told_in_words(tmp_path, content, word):
    """What an editor on Windows makes of a TOML file is named, with what to do."""
    (tmp_path / "relmsg.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=word) as told:
        Settings.load({"config": str(tmp_path / "relmsg.toml")}, {})
    assert "\n" not in str(told.value)
