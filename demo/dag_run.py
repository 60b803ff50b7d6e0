"""Runs a DAG in a process that loads Airflow while the demo's data is still being created.

It does what `airflow db migrate` and `airflow dags test` do, without starting Python twice. It prints READY, waits for
one line on standard input (the DAG's id and the run's conf, as JSON), runs the DAG, and exits with 1 if the run failed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY = "Airflow is ready"
POKE_SECONDS = 1.0
"""How often a sensor looks; 5 in the DAG files, whose waits are longer."""


class AirflowError(Exception):
    """Airflow ended while it was loading; its log says why."""


class DagRun:
    """The process, for its parent."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "demo.dag_run"],
                cwd=Path(__file__).parent.parent,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def start(self, dag_id: str, conf: Mapping[str, Any]) -> subprocess.Popen[str]:
        """Begin the run once Airflow is loaded. Raises AirflowError if it could not be loaded."""
        assert self.process.stdin
        assert self.process.stdout
        if self.process.stdout.readline().strip() != READY:
            raise AirflowError(f"Airflow could not be loaded; {self.log} says why")
        print(json.dumps([dag_id, conf]), file=self.process.stdin, flush=True)
        return self.process


@contextmanager
def loading(environment: Mapping[str, str], log: Path) -> Iterator[DagRun]:
    """Start a process that loads Airflow; it is killed at the end of the block."""
    run = DagRun(environment, log)
    with run.process:
        try:
            yield run
        finally:
            if run.process.poll() is None:
                run.process.kill()


def main() -> int:
    told, sys.stdout = sys.stdout, sys.stderr  # whatever Airflow prints belongs in its log
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor
    from airflow.utils.db import initdb
    from airflow.utils.state import DagRunState

    from demo.airflow import ROOT

    initdb()
    bag = DagBag(ROOT / "dags")
    InProcessTestSupervisor._api_client().get("health")  # the tasks' API, which takes seconds to build
    print(READY, file=told, flush=True)
    dag_id, conf = json.loads(sys.stdin.readline())
    dag = bag.dags[dag_id]
    for task in dag.tasks:
        if hasattr(task, "poke_interval"):
            task.poke_interval = POKE_SECONDS
    return int(dag.test(run_conf=conf).state != DagRunState.SUCCESS)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to be done, and to take Airflow down takes 3 s
