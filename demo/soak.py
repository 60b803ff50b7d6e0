"""`make soak`: migrations and rollbacks under traffic, with something going wrong every few seconds, and all verified.

It does what an operator does. With an even seed, it triggers the DAG, triggers it again after a failure, rolls back and
restarts readers. Only the last migration stops old writes, so that a rollback stays possible. With an odd seed, there
are no instance settings, as in PostHog 1.32 and 1.33, so nothing can be rolled back: there are trials of a few teams,
then the migration, then audits. The faults go on to the end.
One writer deletes as PostHog 1.33 does, without telling ClickHouse, and its ids come back. What that left wrong after
the last verification is repaired by the audit, and only then must both databases agree.
"""

import json
import secrets
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import airflow, cluster, traffic
from demo import postgres as embedded
from demo.airflow import AUDIT, FILL, ROLLBACK
from demo.alone import anew
from demo.chaos import Mishap, Scene, drawn, kill
from demo.clickhouse_server import Server
from demo.schema import MIGRATION, create_postgres, sql
from demo.seed import seed as fill
from demo.soak_tables import LINE, Attempt, Blow, attempts, blows
from demo.switches import WRITES

CONF = {"settle_seconds": 8, "in_flight_seconds": 3, "read_cache_seconds": 4}
AUDITED = {"repair": True, "in_flight_seconds": 3}
"""The traffic's caches last 2 s, and its messages are up to 3 s late unless a fault holds them up."""
LAST_MIGRATION_AT = 0.5
"""After this share of the time there is no further rollback."""
REST_SECONDS = 10.0
"""How long reads stay on the new table before a rollback, and the time between two audits."""
TEAMS_OF_A_TRIAL = 3
COMPLETED, ROLLED_BACK = 2, 4
OVERTIME_SECONDS = 600.0  # enough for one more whole run on a busy machine
TICK_SECONDS = 0.1
console = Console(highlight=False, width=160)


@dataclass
class Soak:
    scene: Scene
    environment: dict[str, str]
    log: Path
    live: traffic.Running
    team_ids: tuple[int, ...]
    has_settings: bool
    seconds: float
    began: float = field(default_factory=time.monotonic)
    attempts: list[Attempt] = field(default_factory=list)
    blows: list[Blow] = field(default_factory=list)
    switched_at: float | None = None

    def now(self) -> float:
        return time.monotonic() - self.began

    def go_on(self, mishaps: list[Mishap], every: float) -> None:
        """Operate until the time is over and the migration is finished, or the overtime is over too."""
        due = list(enumerate(mishaps, 1))
        while self.now() < self.seconds or (not self.finished() and self.now() < self.seconds + OVERTIME_SECONDS):
            self.operate()
            if due and self.now() >= due[0][0] * every and self.now() < self.seconds:
                self.strike(due.pop(0)[1])
            time.sleep(TICK_SECONDS)
        self.take_stock()
        self.scene.inject("")

    def strike(self, mishap: Mishap) -> None:
        self.take_stock()
        blow = Blow(mishap, self.now(), self.step(), self.failed_tasks())
        console.print(f"{blow.at:5.0f} s  [yellow]{mishap}[/] during {blow.during}")
        self.blows.append(blow)
        blow.effect = mishap.happen(self.scene)

    def take_stock(self) -> None:
        """Note what the last mishap did, before the next one replaces it."""
        if self.blows:
            blow = self.blows[-1]
            blow.effect = blow.effect or f"hit {self.scene.met()} statements"
            blow.effect += f"; {self.failed_tasks() - blow.failed_before} tasks failed"

    def operate(self) -> None:
        """The operator's next move, if it is time for one."""
        if self.scene.run:
            if self.scene.run.poll() is None:
                return
            self.note_outcome(self.scene.run.returncode)
        status, writes = self.switch()
        if status == ROLLED_BACK and self.switched_at:
            self.switched_at = None
            self.live.restart_reader()
        last = self.now() > LAST_MIGRATION_AT * self.seconds
        if not self.has_settings:
            self.operate_without_settings(last, status)
        elif status != COMPLETED:
            self.trigger(FILL, {**CONF, "stop_old_writes": last})
        elif writes != "new" and last:
            self.trigger(FILL, CONF)
        elif writes != "new":
            self.switched_at = self.switched_at or self.now()
            if self.now() > self.switched_at + REST_SECONDS:
                self.trigger(ROLLBACK, {})

    def operate_without_settings(self, last: bool, status: int) -> None:
        begin = len(self.attempts) * TEAMS_OF_A_TRIAL % len(self.team_ids)
        if status != COMPLETED:
            trial = {} if last else {"team_ids": self.team_ids[begin : begin + TEAMS_OF_A_TRIAL]}
            self.trigger(FILL, CONF | trial)
        elif (self.attempts[-1].ended or 0) + REST_SECONDS < self.now() < self.seconds:
            self.trigger(AUDIT, AUDITED)

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> None:
        command = ["airflow", "dags", "test", dag_id, "--conf", json.dumps(conf)]
        with self.log.open("ab") as output:
            self.scene.run = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        self.attempts.append(Attempt(dag_id, self.now()))
        console.print(f"{self.now():5.0f} s  {dag_id} {json.dumps(conf) if conf else ''}", markup=False)

    def note_outcome(self, code: int) -> None:
        attempt = self.attempts[-1]
        attempt.ended = self.now()
        attempt.outcome = "killed" if code < 0 else "finished" if code == 0 else f"stopped: {self.reason()}"
        self.scene.run = None
        console.print(f"{self.now():5.0f} s  {attempt.dag_id} {attempt.outcome}"[:LINE])

    def finished(self) -> bool:
        return self.scene.run is None and self.switch() == (COMPLETED, "new")

    def switch(self) -> tuple[int, str]:
        """The migration row's status, and which tables a process that starts now would write."""
        if not self.has_settings:
            [(status,)] = self.ask("SELECT status FROM posthog_asyncmigration WHERE name = %s", MIGRATION)
            return status, "new" if status == COMPLETED else "both"
        [row] = self.ask(
            "SELECT status, raw_value::jsonb #>> '{}' FROM posthog_asyncmigration, posthog_instancesetting "
            "WHERE name = %s AND key = %s",
            MIGRATION, WRITES,
        )  # fmt: skip
        return row

    def step(self) -> str:
        """How far the migration is."""
        if not self.scene.run or self.scene.run.poll() is not None:
            return "rest"
        if not self.has_ledger():
            return "preflight"
        [(step, copied, verified, teams)] = self.ask(
            "SELECT (SELECT what FROM pdi2_migration.event ORDER BY id DESC LIMIT 1), "
            "count(*) FILTER (WHERE status IN ('copied', 'verified')), count(*) FILTER (WHERE status = 'verified'), "
            "count(*) FROM pdi2_migration.team"
        )
        return f"{self.attempts[-1].dag_id} after {step}: of {teams} teams {copied} copied, {verified} verified"

    def has_ledger(self) -> bool:
        return self.ask("SELECT to_regclass('pdi2_migration.event') IS NOT NULL") == [(True,)]

    def failed_tasks(self) -> int:
        if not self.has_ledger():
            return 0
        [[count]] = self.ask("SELECT count(*) FROM pdi2_migration.event WHERE what = 'task_failed'")
        return count

    def reason(self) -> str:
        found = self.has_ledger() and self.ask(
            "SELECT detail->>'error' FROM pdi2_migration.event "
            "WHERE what = 'task_failed' AND at > now() - %s * interval '1 s' ORDER BY id DESC LIMIT 1",
            self.now() - self.attempts[-1].began,
        )
        return found[0][0] if found else "before it changed anything, see the log"

    def ask(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.scene.postgres.connect("posthog") as connection:
            return connection.execute(query.encode(), parameters or None).fetchall()


def run(
    *,
    seed: int,
    seconds: float,
    rate: float,
    writers: int,
    teams: int,
    rows: int,
    fault_every: float,
    replicas: int,
    directory: Path,
) -> int:
    """Returns 0 if nobody read a wrong person, the new table equals Postgres, and the migration is finished."""
    mishaps = drawn(seed, int(seconds // fault_every), replicas=replicas > 1)
    has_settings = seed % 2 == 0
    release = "with instance settings" if has_settings else "without instance settings, as PostHog 1.32 and 1.33"
    console.print(f"Seed {seed}: {len(mishaps)} faults in {seconds:g} s, {release}")
    with (
        anew(directory),
        embedded.running(directory / "postgres") as postgres,
        cluster.servers(directory / "clickhouse", replicas, faults_token=secrets.token_urlsafe()) as servers,
    ):
        clickhouse, *others = servers
        team_ids = _prepare(postgres, clickhouse, rows, teams, seed, has_settings)
        environment = airflow.environment(directory, postgres, clickhouse)
        log = directory / "airflow.log"
        with log.open("wb") as output:
            subprocess.run(["airflow", "db", "migrate"], env=environment, stdout=output, stderr=output, check=True)
        with traffic.running(
            postgres.uri("posthog"),
            servers[-1].port,
            servers[-1].password,
            rate=rate,
            writers=writers,
            seed=seed,
            also=["silent"],
        ) as live:
            soak = Soak(
                Scene(postgres, clickhouse, [one for one in others if isinstance(one, cluster.Replica)]),
                environment,
                log,
                live,
                team_ids,
                has_settings,
                seconds,
            )
            try:
                soak.go_on(mishaps, fault_every)
            finally:
                kill(soak.scene)
            summary = live.end()
        soak.trigger(AUDIT, AUDITED)
        assert soak.scene.run
        soak.note_outcome(soak.scene.run.wait())
        with postgres.connect("posthog") as application:
            return _judge(soak, summary, cluster.disagreeing(servers, application, team_ids))


def _prepare(
    postgres: embedded.Postgres, clickhouse: Server, rows: int, teams: int, seed: int, has_settings: bool
) -> tuple[int, ...]:
    postgres.create_database("posthog")
    with (
        postgres.connect("posthog") as application,
        clickhouse.connect() as client,
        console.status(f"Seeding about {rows:,} rows of {teams} teams"),
    ):
        create_postgres(application)
        if not has_settings:
            application.execute(sql("postgres_1_32"))
        return fill(application, client, rows=rows, teams=teams, seed=seed).team_ids


def _judge(soak: Soak, summary: dict[str, Any], disagreeing: list[tuple[int, str]]) -> int:
    console.print(blows(soak.blows), attempts(soak.attempts))
    console.print("Traffic:", json.dumps(summary, indent=2, ensure_ascii=False), markup=False)
    wrong = []
    if summary["wrong"]:
        wrong.append(f"{summary['wrong']:,} answers were wrong")
    if summary["undelivered"] or not summary["sound"]:
        wrong.append("the traffic's processes failed")
    if disagreeing:
        wrong.append(f"{len(disagreeing):,} times the new table disagrees with Postgres: {json.dumps(disagreeing[:5])}")
    if not soak.finished():
        wrong.append("the migration is not finished: status {}, tables written: {}".format(*soak.switch()))
    for problem in wrong:
        console.print(f"[red]NOT RIGHT: {problem}")
    if not wrong:
        console.print(
            f"[green]{summary['reads']:,} answers, none wrong; every id of the new table agrees with Postgres; "
            "the migration is finished."
        )
    return 1 if wrong else 0
