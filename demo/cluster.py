"""Replicas of the embedded engine on one machine: test equipment, and plain about what it is.

What replicates is ClickHouse's own: Replicated tables, their queues, quorums and fetches, with ClickHouse's TestKeeper
within the process or ZooKeeper beside it. What only clickhouse-server does is ours: the interserver address
(cluster_engine), the sending of parts (cluster_exchange), HTTP (clickhouse_http). Out of reach stay ON CLUSTER and
clusterAllReplicas, for no replica has a native port, and users.

Without a Keeper's port two databases of one process, whose tables have one path in TestKeeper and two names of a
replica, are two replicas, and up in a second: one is away while its tables are detached, and lags under SYSTEM STOP
FETCHES. To lose Keeper, its session or a replica's process takes processes, as Cluster has them.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect

from demo import cluster_engine, cluster_exchange
from demo.clickhouse_engine import Engine
from demo.clickhouse_server import Server
from demo.cluster_zookeeper import ZooKeeper
from demo.schema import KEEPER_PATH, create_clickhouse

CONFIG = """<logger><level>information</level><console>false</console><log>{path}.log</log></logger>
    <tcp_port>{tcp_port}</tcp_port>
    <zookeeper>{keeper}
        <session_timeout_ms>10000</session_timeout_ms>
        <operation_timeout_ms>5000</operation_timeout_ms>
        <sessions_path>/clickhouse/sessions/{name}-{shard}</sessions_path>
    </zookeeper>
    <macros><shard>{shard}</shard><replica>{name}</replica></macros>
    <interserver_http_port>{interserver_port}</interserver_http_port>
    <interserver_http_host>127.0.0.1</interserver_http_host>
    <background_fetches_pool_size>4</background_fetches_pool_size>
    <background_schedule_pool_size>16</background_schedule_pool_size>
    <remote_servers><posthog>{shards}</posthog></remote_servers>"""
"""Each has a path for sessions of its own: all embedded engines have one server's UUID and would end each other's."""
TEST_KEEPER = "<implementation>testkeeper</implementation>"
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
        shards="".join(f"<shard>{''.join(map(_replica, ports))}</shard>" for ports in shards),
    )
    opened = Engine(path, max_memory, more)
    ready.set()
    return opened


def _replica(port: int) -> str:
    return f"<replica><host>127.0.0.1</host><port>{port}</port></replica>"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass
class Replica(Server):
    """A Server that is one replica, in a process of its own. Without `keeper_port` it has a TestKeeper to itself."""

    name: str = "r1"
    shard: str = "01"
    keeper_port: int = 0
    tcp_port: int = 9000
    shards: list[list[int]] = field(default_factory=lambda: [[9000]])
    interserver_port: int = field(default_factory=free_port)

    def options(self) -> dict[str, Any]:
        names = ("name", "shard", "keeper_port", "tcp_port", "shards", "interserver_port")
        return super().options() | {"replica": {name: getattr(self, name) for name in names}}

    def freeze(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def exchange(self, **manners: Any) -> None:
        """How it answers the others' fetches: cluster_exchange says what there is."""
        cluster_exchange.control(self.interserver_port, **manners)

    def create_tables(self, keeper_path: str = KEEPER_PATH) -> None:
        """PostHog's two, in the database posthog."""
        with clickhouse_connect.get_client(host="127.0.0.1", port=self.port, password=self.password) as client:
            client.command("CREATE DATABASE posthog")
            client.database = "posthog"
            create_clickhouse(client, keeper_path=keeper_path)


@dataclass
class Cluster:
    """ZooKeeper, and replicas with PostHog's tables in their databases posthog."""

    zookeeper: ZooKeeper
    replicas: list[Replica]


@contextmanager
def running(directory: Path, count: int = 2, *, sharded: bool = False, **options: Any) -> Iterator[Cluster]:
    """Replicas of one shard, or `sharded`, as PostHog never has these tables, shards of one replica. `options` are
    Server's. Everything is killed at the end, whatever state it is in.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ports = [9001 + number for number in range(count)]
    cluster = Cluster(ZooKeeper(directory / "zookeeper", free_port()), [])
    with ExitStack() as stack:
        stack.callback(cluster.zookeeper.kill)
        cluster.zookeeper.start()
        for number, port in enumerate(ports, 1):
            replica = Replica(
                directory / f"r{number}",
                name=f"r{number}",
                shard=f"{number:02}" if sharded else "01",
                keeper_port=cluster.zookeeper.port,
                tcp_port=port,
                shards=[[port] for port in ports] if sharded else [ports],
                **options,
            )
            cluster.replicas.append(replica)
            stack.callback(replica.kill)
            replica.start()
            replica.create_tables(KEEPER_PATH.replace("noshard", "{shard}") if sharded else KEEPER_PATH)
        yield cluster
