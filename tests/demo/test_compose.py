"""docker-compose.yaml cannot be started here, so these tests check what can be checked without containers."""

import json
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from demo import clickhouse_server, compose_env
from demo import postgres as embedded

FILE = ROOT / "docker-compose.yaml"
TEXT = FILE.read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ASKED_FOR = re.compile(r"\$\{(\w+):\?[^}]*\}")
PORT = "${AIRFLOW_PORT:-8080}"
SECRET = re.compile(r"PASSWORD$|SECRET|KEY$")


def test_it_is_what_the_compose_specification_allows() -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check_or_ends(name: str) -> None:
    service = SERVICES[name]
    waited_for = {
        dependency: wanted["condition"]
        for other in SERVICES.values()
        for dependency, wanted in other.get("depends_on", {}).items()
    }

    if service["restart"] == "no":
        assert waited_for[name] == "service_completed_successfully"
    else:
        assert service["healthcheck"]["test"]
        assert waited_for.get(name, "service_healthy") == "service_healthy"


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_listens_beyond_this_machine(name: str) -> None:
    service = SERVICES[name]

    assert "network_mode" not in service
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_in_the_open(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable):
            assert ASKED_FOR.fullmatch(value), f"{variable} has no default"
        if variable.startswith("AIRFLOW_CONN_"):
            assert ASKED_FOR.fullmatch(json.loads(value)["password"])
    assert not re.search(r"://\w+:[^$@/\s]+@", TEXT), "no address holds a password"


@pytest.mark.parametrize("name", SERVICES)
def test_a_health_check_gives_curl_no_password_as_an_argument(name: str) -> None:
    """All users of the machine see arguments. clickhouse-client hides its own."""
    check = " ".join(SERVICES[name].get("healthcheck", {}).get("test", []))

    assert not re.search(r"\bcurl\b.*\$\$\w*(PASSWORD|SECRET|KEY)", check)


def test_every_secret_is_asked_for_by_name_and_generated() -> None:
    names = re.findall(r"^(\w+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE)

    assert set(ASKED_FOR.findall(TEXT)) == set(names)
    assert "${" not in ASKED_FOR.sub("", TEXT.replace(PORT, ""))


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_to_a_release(name: str) -> None:
    assert re.search(r":\d+\.\d+", SERVICES[name]["image"])


def test_airflows_image_has_the_locked_versions() -> None:
    recipe = SERVICES["seed"]["build"]["dockerfile_inline"]
    locked = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    installed = re.findall(r"([\w-]+)(?:\[\w+\])?==([\w.]+)", recipe)

    assert re.search(r"^FROM apache/airflow:([\d.]+)-python3.11$", recipe, re.MULTILINE)[1] == locked["apache-airflow"]
    assert len(installed) > 5
    assert dict(installed).items() <= locked.items()


def test_one_service_builds_the_image_and_the_others_wait_for_it() -> None:
    """If several builds of one tag run at a time on a clean machine, they fail ("image already exists")."""
    [(builder, built)] = [(name, service) for name, service in SERVICES.items() if "build" in service]
    users = {name for name, service in SERVICES.items() if service["image"] == built["image"]} - {builder}

    assert users == {"traffic", "airflow"}
    for name in users:
        assert SERVICES[name]["pull_policy"] == "never", "the image is in no registry"
        assert builder in SERVICES[name]["depends_on"]


def test_the_temporary_server_of_clickhouses_entrypoint_does_not_count_as_healthy() -> None:
    """It listens only on 127.0.0.1: ClickHouse's docker/server/entrypoint.sh starts it with --listen_host."""
    [_, command] = SERVICES["clickhouse"]["healthcheck"]["test"]

    assert "--host clickhouse " in command


@pytest.mark.parametrize("name", ["seed", "traffic"])
def test_the_application_does_not_ask_for_airflows_database(name: str) -> None:
    """The image's entrypoint runs `airflow db check` before any command, unless this is 0 (entrypoint_prod.sh)."""
    assert SERVICES[name]["environment"]["CONNECTION_CHECK_MAX_COUNT"] == "0"


def test_it_says_what_it_needs() -> None:
    heading = TEXT.partition("name:")[0]

    for needed in ("Compose 2.17", "GB of memory", "port 8080", "AIRFLOW_PORT="):
        assert needed in heading


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            assert source in COMPOSE["volumes"] or (ROOT / source).is_dir(), volume
            assert target.startswith("/")
    mounted = SERVICES["airflow"]["volumes"]
    assert {"./dags:/opt/airflow/dags:ro", "./plugins:/opt/airflow/plugins:ro"} <= set(mounted)


def test_secrets_are_generated_once_for_this_user_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / ".env"

    assert compose_env.write(file) == 0
    first = file.read_text()
    assert compose_env.write(file) == 1

    assert file.read_text() == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secrets = [line.partition("=")[2] for line in first.splitlines()]
    assert len(set(secrets)) == len(secrets) == 7
    assert all(len(secret) == 44 for secret in secrets)
    assert not any(secret in capsys.readouterr().out for secret in secrets)


@pytest.mark.slow
def test_the_seeding_service_fills_both_databases_once(
    postgres_server: embedded.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the service's own command with the addresses of this machine's engines. ClickHouse is late."""
    postgres_server.create_database("compose")
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "of this test")
    with clickhouse_server.running(tmp_path / "clickhouse", password="of this test") as server:
        here = {
            "--postgres": f"postgresql:///compose?host={postgres_server.host}&user=postgres",
            "--clickhouse-host": "127.0.0.1",
            "--clickhouse-port": str(server.port),
            "--clickhouse-user": "default",
        }
        client = server.connect()
        client.command("CREATE DATABASE posthog")
        command = shlex.split(SERVICES["seed"]["command"])
        command = [here.get(before, word) for before, word in zip(["", *command], command, strict=False)]
        command[0] = sys.executable

        server.stop()
        first = subprocess.Popen([*command, "--rows=5000"], cwd=ROOT, text=True, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(timeout=4)
        server.start()
        said = [first.communicate()[0], subprocess.check_output([*command, "--rows=5000"], cwd=ROOT, text=True)]

        rows = client.query("SELECT count() FROM posthog.person_distinct_id").result_rows[0][0]
        assert said == [f"Seeded {rows:,} rows of 40 teams\n", "The data is there already\n"]
        with postgres_server.connect("compose") as connection:
            assert connection.execute("SELECT count(*) > 4000 FROM posthog_persondistinctid").fetchone() == (True,)
