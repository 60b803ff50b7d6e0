"""The DAGs as Airflow sees them before any run, and the walls between the package's rooms."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowTaskTimeout
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import AUDIT, FILL, ROLLBACK, ROOT, System
from pdi2.core.engines.failures import BusyError, MigrationError, naming_failures
from pdi2.core.state.settings import AUDIT_SCHEMA, SCHEMA
from pdi2.edge.retries import RETRIES, RetryWhatHelps
from stories import MEGABYTE

PACKAGE = ROOT / "plugins" / "pdi2"
DAG_FILES = sorted((ROOT / "dags").glob("*.py"))
ROOMS = ("engines", "state", "cluster", "copy", "plan", "verify", "switch", "report")
"""The rooms of core: each knows the rooms before it, and none after it."""
CORE = sorted(f"pdi2.core.{path.parent.name}.{path.stem}" for path in (PACKAGE / "core").glob("*/[!_]*.py"))
STATEMENTS = sorted((path.parts[-3], path.stem) for path in (PACKAGE / "sql").glob("*/*/*.sql"))

TEAM = {"team.copy", "team.verify"}
EDGES = {
    "preflight": {"enable_dual_writes", "plan_teams", "certify", "stop_old_writes", "end"},
    "enable_dual_writes": {"prove_dual_writes"},
    "prove_dual_writes": {"plan_teams"},
    "plan_teams": {"team.copy", "team.verify"},
    "team.copy": {"team.verify", "certify"},
    "team.verify": {"certify", "report"},
    "certify": {"approve"},
    "approve": {"switch_reads"},
    "switch_reads": {"stop_old_writes"},
    "stop_old_writes": {"end", "report"},
    "end": set(),
    "report": set(),
}


def in_a_new_interpreter(program: str, *options: str) -> Any:
    """What the program printed last, as JSON; Airflow's own notices come before it."""
    command = [sys.executable, *options, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT / "plugins")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def dags() -> dict[str, Any]:
    bag = DagBag(ROOT / "dags")
    assert bag.import_errors == {}
    warnings = [text for texts in bag.captured_warnings.values() for text in texts]
    assert [text for text in warnings if text.startswith((f"{ROOT}/dags", f"{ROOT}/plugins"))] == []
    return bag.dags


def test_every_dag_file_holds_its_dag(dags: dict[str, Any]) -> None:
    assert {Path(dag.fileloc).stem: dag_id for dag_id, dag in dags.items()} == {
        dag_id: dag_id for dag_id in (AUDIT, FILL, ROLLBACK)
    }


def test_the_flow_is_the_migrations_table_of_contents(dags: dict[str, Any]) -> None:
    dag = dags[FILL]

    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == EDGES
    assert list(dag.task_group.children["team"].children) == ["team.copy", "team.verify"]
    assert {task.task_id for task in dag.tasks if task.get_closest_mapped_task_group()} == TEAM


def test_no_task_waits_for_a_setup(dags: dict[str, Any]) -> None:
    """A skipped setup would skip all up to its teardown: a dry run's plan, or the end of old writes after a switch."""
    assert {task.task_id for task in dags[FILL].tasks if task.is_setup} == set()


def test_a_run_is_red_by_the_way_to_its_end_or_by_its_report(dags: dict[str, Any]) -> None:
    """Airflow counts tasks that nothing follows, and teardowns if they ask for it (DagRun._tis_for_dagrun_state)."""
    dag = dags[FILL]

    assert {task.task_id for task in dag.tasks if not task.downstream_task_ids} == {"end", "report"}
    assert dag.task_dict["report"].is_teardown
    assert dag.task_dict["report"].on_failure_fail_dagrun


def test_rollback_is_one_task_and_ready_at_once(dags: dict[str, Any]) -> None:
    assert [task.task_id for task in dags[ROLLBACK].tasks] == ["roll_back"]
    assert dags[ROLLBACK].is_paused_upon_creation is False


def test_an_audit_judges_in_its_last_task_whatever_became_of_the_others(dags: dict[str, Any]) -> None:
    dag = dags[AUDIT]

    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {
        "choose_teams": {"compare"},
        "compare": {"report_drift"},
        "report_drift": set(),
    }
    assert dag.task_dict["report_drift"].trigger_rule.value == "all_done"


def test_a_failed_team_stops_no_other_and_what_failed_stops_the_gate(dags: dict[str, Any]) -> None:
    rules = {task.task_id: task.trigger_rule.value for task in dags[FILL].tasks}

    assert {task_id for task_id, rule in rules.items() if rule == "all_done"} == {"team.verify"}
    assert rules["certify"] == "none_failed"
    assert {task_id for task_id, rule in rules.items() if rule == "none_failed_min_one_success"} == {
        "plan_teams",
        "stop_old_writes",
        "end",
    }
    assert dags[FILL].task_dict["certify"].ignore_downstream_trigger_rules
    assert {rules[task_id] for task_id in ("preflight", "enable_dual_writes", "prove_dual_writes", "switch_reads")} == {
        "all_success"
    }


def test_waiting_tasks_free_their_worker_slot(dags: dict[str, Any]) -> None:
    modes = {task.task_id: task.mode for task in dags[FILL].tasks if hasattr(task, "poke_interval")}

    assert modes == {"prove_dual_writes": "reschedule", "stop_old_writes": "reschedule"}


@pytest.mark.parametrize("dag_id", [AUDIT, FILL, ROLLBACK])
def test_a_dag_is_started_by_hand_one_run_at_a_time(dags: dict[str, Any], dag_id: str) -> None:
    dag = dags[dag_id]

    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.tags == {"clickhouse", "migration", "posthog"}


@pytest.mark.parametrize("dag_id", [AUDIT, FILL, ROLLBACK])
def test_every_task_retries_what_a_retry_helps_and_says_what_it_does(dags: dict[str, Any], dag_id: str) -> None:
    for task in dags[dag_id].tasks:
        assert isinstance(task.retry_policy, RetryWhatHelps), task.task_id
        assert task.retries == RETRIES, task.task_id


@pytest.mark.parametrize(("dag_id", "schema"), [(FILL, SCHEMA), (AUDIT, AUDIT_SCHEMA)], ids=["fill", "audit"])
def test_params_are_the_settings_with_their_bounds(dags: dict[str, Any], dag_id: str, schema: dict[str, Any]) -> None:
    params = dags[dag_id].params

    assert set(params) == set(schema)
    for name, wanted in schema.items():
        param = params.get_param(name)
        found = {"default": param.value, "description": param.description, **param.schema}
        assert {key: found.get(key) for key in wanted} == wanted


IMPORT_DAGS = f"""
import importlib.util, json, socket, sqlite3, sys, warnings
import airflow.sdk

warnings.filterwarnings("error", module="pdi2|dag_")
warnings.filterwarnings("error", category=SyntaxWarning)
met = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "sqlite3.connect"):
        met.append([event, str(arguments)])

sys.addaudithook(watch)
for number, path in enumerate({[str(path) for path in DAG_FILES]!r}):
    spec = importlib.util.spec_from_file_location(f"dag_{{number}}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(json.dumps({{"met": met, "engines": [name for name in ("chdb",) if name in sys.modules]}}))
"""


def test_importing_the_dags_touches_no_database_and_no_network() -> None:
    """Neither connection is defined here, so a DAG file that asks for one cannot even be imported."""
    assert in_a_new_interpreter(IMPORT_DAGS) == {"met": [], "engines": []}


@pytest.mark.slow
def test_the_dags_import_fast() -> None:
    """The scheduler parses these files over and over. The second time costs only what the files themselves cost."""
    program = f"""
import json, time
from airflow.dag_processing.dagbag import DagBag
DagBag({str(ROOT / "dags")!r})
began = time.process_time()
bag = DagBag({str(ROOT / "dags")!r})
print(json.dumps([len(bag.dags), time.process_time() - began]))
"""
    dags, seconds = in_a_new_interpreter(program)

    assert dags == 3
    assert seconds < 1


LOAD_PLUGINS = """
import json, sys
from pathlib import Path
before = set(sys.modules)
from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()
found, errors = plugins_manager._get_plugins()
package = Path.cwd() / "pdi2"
print(json.dumps({
    "errors": errors,
    "executed as files": sorted(
        name for name, module in sys.modules.items()
        if str(getattr(module, "__file__", None) or "").startswith(f"{package}/") and name.split(".")[0] != "pdi2"
    ),
    "copy": sys.modules["copy"].__file__,
    "plugin": "pdi2_plugin" in sys.modules,
    "page": "pdi2.edge.page" in sys.modules,
}))
"""


@pytest.mark.slow
def test_airflow_does_not_execute_the_package_file_by_file() -> None:
    """A task loads every plugin, but it does not import the page either."""
    import copy

    found = in_a_new_interpreter(LOAD_PLUGINS)

    assert found == {"errors": {}, "executed as files": [], "copy": copy.__file__, "plugin": True, "page": False}


@pytest.mark.slow
def test_without_the_ignore_file_airflow_would(tmp_path: Path) -> None:
    """Shows that the test above can fail: without the ignore file, Airflow executes such a package file by file."""
    plugins = tmp_path / "plugins"
    (plugins / "pdi2").mkdir(parents=True)
    (plugins / "pdi2" / "copying_room.py").write_text("")
    program = f"""
import os
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = {str(plugins)!r}
os.chdir({str(plugins)!r})
{LOAD_PLUGINS}
"""
    assert in_a_new_interpreter(program.replace('"plugin": ', '"_": '))["executed as files"] == ["copying_room"]
    (plugins / ".airflowignore").write_text((ROOT / "plugins" / ".airflowignore").read_text())
    assert in_a_new_interpreter(program)["executed as files"] == []


def test_the_core_imports_no_airflow() -> None:
    program = f"""
import importlib, json, sys
for name in {CORE!r}:
    importlib.import_module(name)
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in ("airflow", "pendulum"))))
"""
    assert "pdi2.core.copy.copying" in CORE
    assert in_a_new_interpreter(program) == []


def test_no_module_of_the_core_imports_the_edge() -> None:
    for path in (PACKAGE / "core").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (airflow|pdi2\.edge)", path.read_text(), re.MULTILINE), path.name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_core_knows_none_above_it(room: str) -> None:
    below = ROOMS[: ROOMS.index(room) + 1]
    for path in (PACKAGE / "core" / room).glob("*.py"):
        known = set(re.findall(r"^\s*from pdi2\.core\.(\w+)", path.read_text(), re.MULTILINE))
        assert known <= set(below), path.name
    assert {path.name for path in (PACKAGE / "core").iterdir() if (path / "__init__.py").exists()} == set(ROOMS)


def test_no_two_statements_of_an_engine_share_a_name() -> None:
    assert len(set(STATEMENTS)) == len(STATEMENTS)


@cache
def names_in_the_code() -> set[str]:
    """Every string in the package's modules that could be a statement's name; f-strings become patterns."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in node.values]
                names.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(re.escape(node.value))
    return {name for name in names if re.fullmatch(r"[a-z_\\w+]+", name)}


def called_statements() -> set[tuple[str, str]]:
    """(engine, name) of every statement that a module names in a call; names in variables are not seen here."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            callee = ast.unparse(node.func)
            engine, position = next((CALLS[end] for end in CALLS if callee.endswith(end)), (None, 0))
            if engine and len(node.args) > position and isinstance(node.args[position], ast.Constant):
                found.add((engine, node.args[position].value))
    return found


CALLS = {
    "warehouse.rows": ("clickhouse", 0),
    "warehouse.execute": ("clickhouse", 0),
    "sql.clickhouse": ("clickhouse", 0),
    "postgres.execute": ("postgres", 1),
    "postgres.value": ("postgres", 1),
    "sql.postgres": ("postgres", 0),
    "self._execute": ("postgres", 0),
    "self._value": ("postgres", 0),
}


def test_every_statement_that_is_called_exists() -> None:
    called = called_statements()

    assert len(called) > len(STATEMENTS) / 2, "the calls are recognised"
    assert called - set(STATEMENTS) == set()


@pytest.mark.parametrize(("engine", "name"), STATEMENTS, ids=["/".join(statement) for statement in STATEMENTS])
def test_every_statement_is_used(engine: str, name: str) -> None:
    assert any(re.fullmatch(pattern, name) for pattern in names_in_the_code())


def test_airflows_own_failures_are_retried() -> None:
    """Airflow says that a connection does not exist whenever a secrets backend did not answer (its ExecutionAPISecrets-
    Backend: "not found or transient error"), and its AirflowTaskTimeout is no Exception."""
    for error in (AirflowNotFoundException("The conn_id `posthog_postgres` isn't defined"), AirflowTaskTimeout("late")):
        assert RetryWhatHelps().evaluate(error, try_number=1, max_tries=6).action is RetryAction.RETRY


def test_no_task_has_a_time_limit_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Airflow ended each task after an hour, a verification would begin anew, and an approval's question end."""
    monkeypatch.setenv("AIRFLOW__CORE__DEFAULT_TASK_EXECUTION_TIMEOUT", "3600")
    told = in_a_new_interpreter(
        "import json; from airflow.dag_processing.dagbag import DagBag; bag = DagBag('../dags');"
        "limits = {str(one.execution_timeout) for dag in bag.dags.values() for one in dag.tasks};"
        "print(json.dumps([len(bag.dags), *limits]))"
    )
    assert told == [3, "None"]


def test_a_statement_that_cannot_be_cut_and_does_not_fit_is_not_retried(system: System) -> None:
    heavy = "SELECT groupArray(toString(number)) FROM numbers(10000000) FORMAT Null"
    with pytest.raises(DatabaseError) as failure:
        system.clickhouse.command(heavy, settings={"max_memory_usage": MEGABYTE})
    decision = RetryWhatHelps().evaluate(failure.value, try_number=1, max_tries=5, context=None)

    assert decision.action is RetryAction.FAIL
    assert "greater max_memory_usage" in str(decision.reason)


@pytest.mark.parametrize(
    ("statement", "kind", "next_step"),
    [
        ("SELECT no_such_column", MigrationError, "UNKNOWN_IDENTIFIER.*Remove the cause and trigger the run again"),
        ("SELECT sleep(1) SETTINGS max_execution_time = 0.1", BusyError, "TIMEOUT_EXCEEDED.*Airflow tries again"),
        ("SELECT groupArray(toString(number)) FROM numbers(10000000) SETTINGS max_memory_usage = 1000000",
         MigrationError, "MEMORY_LIMIT_EXCEEDED.*with a greater max_memory_usage"),
    ],
)  # fmt: skip
def test_an_engines_failure_says_what_stopped_what_is_safe_and_what_to_do(
    system: System, statement: str, kind: type[MigrationError], next_step: str
) -> None:
    with pytest.raises(MigrationError, match="^verify team 7 was stopped") as failure, naming_failures("verify team 7"):
        system.clickhouse.query(statement)

    assert type(failure.value) is kind
    assert "reads stay as they are" in str(failure.value)
    assert re.search(next_step, str(failure.value), re.DOTALL)
