"""`make demo` as a newcomer sees it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

STEPS = [
    "Seeded 2,",
    "The application is live",
    "Airflow runs the DAG fill_person_distinct_id2",
    "The application writes both tables",
    "Its writes are seen in both tables",
    "The list of teams is frozen",
    "Every team is copied, and equals Postgres id by id",
    "Reads are on the new table",
    "Writes to the old table have stopped",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("replicas", "running"),
    [
        (1, "Postgres and ClickHouse are running"),
        pytest.param(2, "Postgres and 2 replicas of ClickHouse", marks=pytest.mark.cluster),
    ],
)
def test_the_demo_shows_each_step_with_its_time_and_what_to_try_next(
    replicas: int, running: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "demo", "run", "--rows", "3000", "--teams", "3", "--replicas", str(replicas)]
    demo = subprocess.run(
        [*command, "--directory", str(tmp_path / "demo")], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    said = demo.stdout.splitlines()
    assert "about a minute" in demo.stdout.partition("✓")[0]
    told = [line for line in said if re.match(r" *\d+ s  ✓ .* \(\d+\.\d s\)$", line)]
    assert [step for step in [running, *STEPS] if not any(step in line for line in told)] == []
    [certificate] = re.findall(r"^The certificate, team by team: (/.*\.html)$", demo.stdout, re.MULTILINE)
    assert "person_distinct_id2" in Path(certificate).read_text()
    assert re.search(r"Answers it read meanwhile .* \(0 wrong\)", demo.stdout)
    assert "NOT RIGHT" not in demo.stdout
    assert demo.stdout.index("What next") > demo.stdout.index("The certificate")
