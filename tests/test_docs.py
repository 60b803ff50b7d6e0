"""Checks what the documents promise about the code, if that can be checked."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
from airflow.plugins_manager import AirflowPlugin
from conftest import FILL, ROOT
from pdi2.core.state.settings import SCHEMA

PACKAGE = ROOT / "plugins" / "pdi2"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
README = (ROOT / "README.md").read_text()
HOLE = "\x01"


def text_of(node: ast.AST) -> str | None:
    """A string in the source, with holes for what is filled in; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in PACKAGE.rglob("*.py"):
        yield path, ast.parse(path.read_text())


def raised() -> set[str]:
    """The message of every error in this package: the text that is given to one of its own exceptions."""
    own = {node.name for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return {
        text
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in own and node.func.id.endswith("Error")
        for argument in node.args
        if (text := text_of(argument)) and " " in text
    }


def listed() -> dict[str, re.Pattern[str]]:
    """The runbook's messages, in which N, M and … stand for anything."""
    found = re.findall(r"^\| `([^`]+)` \|", RUNBOOK, re.MULTILINE)
    return {one: re.compile(re.sub(r"\\?\bN\b|\\?\bM\b|…", ".*", re.escape(one)), re.DOTALL) for one in found}


MESSAGES = sorted(raised())
LISTED = listed()
SAID = [text for _, tree in trees() for node in ast.walk(tree) if (text := text_of(node))]


def test_errors_are_recognised() -> None:
    assert len(MESSAGES) > 20
    assert any("A writer ignores the dual-write switch" in message for message in MESSAGES)


@pytest.mark.parametrize("message", MESSAGES, ids=[message[:40].replace(HOLE, "_") for message in MESSAGES])
def test_the_runbook_has_every_error(message: str) -> None:
    assert [one for one, pattern in LISTED.items() if pattern.search(message)]


@pytest.mark.parametrize("one", LISTED)
def test_the_runbook_has_nothing_that_is_not_said(one: str) -> None:
    assert any(LISTED[one].search(text) for text in SAID)


def test_the_readme_has_every_parameter_and_option() -> None:
    configuration = (PACKAGE / "edge" / "configuration.py").read_text()
    options = set(re.findall(r'(?:_text|_json_object|SECTION,)\s*\(?"(\w+)"', configuration)) | {
        "schedule",
        "audit_schedule",
    }

    assert {"notifier", "defaults", "deadline_minutes", "certificates"} <= options
    for name in {*SCHEMA, *options}:
        assert f"| `{name}` |" in README, name


def test_the_readme_has_every_task() -> None:
    from airflow.dag_processing.dagbag import DagBag

    for task in DagBag(ROOT / "dags").dags[FILL].tasks:
        assert f"| `{task.task_id}` |" in README, task.task_id


def test_every_document_that_is_named_exists() -> None:
    markdown = [path for folder in (ROOT, ROOT / "docs", ROOT / "dags") for path in folder.glob("*.md")]
    for document in [ROOT / "Makefile", *markdown]:
        for name in re.findall(r"(?<![\w/.-])((?:docs|bench|demo|dags|tests)/[\w./-]*\w)", document.read_text()):
            assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_the_installed_package_is_a_plugin_with_all_its_files() -> None:
    """An Airflow whose DAGs come as a bundle needs this, because a bundle has no plugins."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    [(_, entry)] = [line.split(" = ") for line in setup["options.entry_points"]["airflow.plugins"].split("\n") if line]
    packed = {
        path
        for package, globs in setup["options.package_data"].items()
        for glob in globs.split()
        for path in (ROOT / "plugins" / package.replace(".", "/")).glob(glob)
    }

    assert issubclass(pkgutil.resolve_name(entry), AirflowPlugin)
    assert {path for path in PACKAGE.rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")} == packed
