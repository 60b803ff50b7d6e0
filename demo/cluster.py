"""Replicas of the embedded engine on one machine, for tests and demos.

The replication is ClickHouse's own: Replicated tables, their queues, quorums and fetches, with ClickHouse's TestKeeper
within the process or a separate ZooKeeper. We add what only clickhouse-server does: the interserver address
(cluster_engine), the sending of parts (cluster_exchange) and HTTP (clickhouse_http). Users do not work, and neither do
ON CLUSTER and clusterAllReplicas, because no replica has a native port.

Without a Keeper port, two databases of one process act as two replicas, if their tables have the same path in
TestKeeper but different replica names. They are up in a second; a replica is away while its tables are detached, and
lags under SYSTEM STOP FETCHES. To lose Keeper, its session or a replica takes separate processes: see `running`.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from demo import clickhouse_server, cluster_engine, cluster_exchange
from demo.alone import free_port
from demo.clickhouse_engine import Engine
from demo.clickhouse_server import Server
from demo.cluster_zookeeper import ZooKeeper
from demo.reader import disagreements
from demo.schema import KEEPER_PATH, Table, create_clickhouse

CONFIG = """<logger><level>information</level><console>false</console><log>{path}.log</log></logger>
    <tcp_port>{tcp_port}</tcp_port>
    <zookeeper>{keeper}
        <session_timeout_ms>10000</session_timeout_ms>
        <operation_timeout_ms>5000</operation_timeout_ms>
        <sessions_path>/clickhouse/sessions/{name}-{shard}</sessions_path>
    </zookeeper>
    <auxiliary_zookeepers><aux>{keeper}</aux></auxiliary_zookeepers>
    <macros><shard>{shard}</shard><replica>{name}</replica></macros>
    <interserver_http_port>{interserver_port}</interserver_http_port>
    <interserver_http_host>127.0.0.1</interserver_http_host>
    <background_fetches_pool_size>4</background_fetches_pool_size>
    <background_schedule_pool_size>16</background_schedule_pool_size>
    <remote_servers><posthog>{shards}</posthog></remote_servers>"""
"""Each engine has its own path for sessions, because all embedded engines have the same server UUID, and would end each
other's sessions."""
TEST_KEEPER = "<implementation>testkeeper</implementation>"
REPLICATES = "<internal_replication>true</internal_replication>"
"""An insert into a Distributed table goes to one replica, and the replicated table copies it to the others."""
DIRECTORIES = """SELECT arrayJoin(data_paths) FROM system.tables WHERE (database, name) IN
    (SELECT (database, table) FROM system.replicas WHERE replica_path = '{replica_path}')"""


def engine(
    path: Path,
    max_memory: int,
    *,
    name: str,
    shard: str,
    keeper_port: int,
    interserver_port: int,
    tcp_port: int,
    shards: list[list[int]],
) -> Engine:
    """One replica's engine, with its exchange of parts. `shards` has the TCP ports that system.clusters shows."""
    cluster_engine.prepare("127.0.0.1", interserver_port)
    ready = threading.Event()

    def directories_of(replica_path: str) -> list[str]:
        ready.wait()
        return [directory for (directory,) in opened.ask(DIRECTORIES.format(replica_path=replica_path))]

    cluster_exchange.Exchange(interserver_port, directories_of)  # first: tables fetch as soon as they start
    node = f"<node><host>127.0.0.1</host><port>{keeper_port}</port></node>"
    more = CONFIG.format(
        path=path.resolve(),
        name=name,
        shard=shard,
        keeper=node if keeper_port else TEST_KEEPER,
        interserver_port=interserver_port,
        tcp_port=tcp_port,
        shards="".join(f"<shard>{REPLICATES}{''.join(map(_replica, ports))}</shard>" for ports in shards),
    )
    opened = Engine(path, max_memory, more)
    ready.set()
    return opened


def _replica(port: int) -> str:
    return f"<replica><host>127.0.0.1</host><port>{port}</port></replica>"


@dataclass
class Replica(Server):
    """A Server that is one replica, in its own process. Without ZooKeeper it has its own TestKeeper."""

    name: str = "r1"
    shard: str = "01"
    zookeeper: ZooKeeper | None = None
    tcp_port: int = 9000
    shards: list[list[int]] = field(default_factory=lambda: [[9000]])
    interserver_port: int = field(default_factory=free_port)

    def options(self) -> dict[str, Any]:
        names = ("name", "shard", "tcp_port", "shards", "interserver_port")
        keeper = {"keeper_port": self.zookeeper.port if self.zookeeper else 0}
        return super().options() | {"replica": keeper | {name: getattr(self, name) for name in names}}

    def freeze(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def exchange(self, **manners: Any) -> None:
        """Change how it answers the others' fetches: cluster_exchange lists the options."""
        cluster_exchange.control(self.interserver_port, **manners)


@contextmanager
def running(
    directory: Path, count: int = 2, *, database: str = "posthog", sharded: bool = False, **options: Any
) -> Iterator[list[Replica]]:
    """Start replicas of one shard with PostHog's tables; `options` are those of Server.

    With `sharded`, start shards of one replica each, although PostHog never shards these tables. Everything is killed
    at the end, whatever state it is in.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ports = [9001 + number for number in range(count)]
    keeper_path = KEEPER_PATH.replace("noshard", "{shard}") if sharded else KEEPER_PATH
    zookeeper = ZooKeeper(directory / "zookeeper", free_port())
    replicas: list[Replica] = []
    with ExitStack() as stack:
        stack.callback(zookeeper.kill)
        zookeeper.start()
        for number, port in enumerate(ports, 1):
            replica = Replica(
                directory / f"r{number}",
                name=f"r{number}",
                shard=f"{number:02}" if sharded else "01",
                zookeeper=zookeeper,
                tcp_port=port,
                shards=[[port] for port in ports] if sharded else [ports],
                **options,
            )
            stack.callback(replica.kill)
            replica.start()
            with replica.connect() as client:
                client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
                client.database = database
                create_clickhouse(client, keeper_path=keeper_path)
            replicas.append(replica)
        yield replicas


@contextmanager
def servers(directory: Path, replicas: int, **options: Any) -> Iterator[Sequence[Server]]:
    """Start a server, or several replicas, with PostHog's tables in the database default; `options` are Server's."""
    if replicas > 1:
        with running(directory, replicas, database="default", **options) as several:
            yield several
        return
    with clickhouse_server.running(directory, **options) as server:
        with server.connect() as client:
            create_clickhouse(client)
        yield [server]


def disagreeing(
    servers: Sequence[Server], postgres: psycopg.Connection, team_ids: Sequence[int]
) -> list[tuple[int, str]]:
    """The ids of these teams for which the new table's reader and Postgres disagree, on each of the servers."""
    found = []
    for server in servers:
        with server.connect() as client:
            if len(servers) > 1:
                client.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
            for team_id in team_ids:
                found += [(team_id, distinct_id) for distinct_id in disagreements(postgres, client, team_id)]
    return found


def told(servers: Sequence[Server]) -> str:
    """What `servers` started, in words."""
    if len(servers) == 1:
        return "ClickHouse"
    return f"{len(servers)} replicas of ClickHouse (the migration asks the first, the application the last)"
