"""`python -m demo`: the whole migration on one machine, without containers."""

import argparse
import math
import sys
from importlib import import_module
from pathlib import Path

from demo.alone import InUseError, end_in_good_order
from demo.dag_run import AirflowError

MODULES = {
    "run": "story",
    "up": "up",
    "seed": "prepare",
    "screenshots": "screenshots",
    "clickhouse": "clickhouse_server",
    "traffic": "traffic",
    "soak": "soak",
}
"""Each has a function `run` with the command's options. Only the one that is needed is imported."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="seed, migrate through Airflow, and report (make demo)")
    run.add_argument("--rows", type=int, default=150_000, help="rows of the old table, about")
    run.add_argument("--teams", type=int, default=5)
    run.add_argument("--seed", type=int, default=1, help="the same seed gives the same data")
    run.add_argument("--directory", type=Path, default=Path(".demo"), help="made anew each time")
    run.add_argument("--replicas", type=int, default=1, help="of ClickHouse; several need Debian's zookeeper")

    up = commands.add_parser("up", help="Airflow with its UI on everything it needs, until Ctrl-C (make up)")
    up.add_argument("--rows", type=int, default=300_000)
    up.add_argument("--teams", type=int, default=40)
    up.add_argument("--directory", type=Path, default=Path(".demo-up"), help="made anew each time")
    up.add_argument("--port", type=int, default=8080, help="of Airflow, on 127.0.0.1")
    up.add_argument("--rate", type=float, default=5, help="changes per second that the application makes; 0: none")
    up.add_argument("--zipf", action="store_true", help="sizes of teams follow Zipf's law; else one team has half")
    up.add_argument("--replicas", type=int, default=1, help="of ClickHouse; several need Debian's zookeeper")

    databases = argparse.ArgumentParser(add_help=False)
    databases.add_argument("--postgres", metavar="URI", required=True, help="the application's database")
    databases.add_argument("--clickhouse-host", default="127.0.0.1")
    databases.add_argument(
        "--clickhouse-port", type=int, required=True, help="of HTTP; the password is in CLICKHOUSE_PASSWORD, a variable"
    )
    databases.add_argument("--clickhouse-user", default="default")
    databases.add_argument("--clickhouse-database", default="default")

    seed = commands.add_parser("seed", parents=[databases], help="create the application's tables and fill them, once")
    seed.add_argument("--rows", type=int, default=300_000, help="rows of the old table, about")
    seed.add_argument("--teams", type=int, default=40)

    pictures = commands.add_parser("screenshots", help="take the README's pictures in Chromium (make screenshots)")
    pictures.add_argument("--pictures", type=Path, default=Path("docs/screenshots"))
    pictures.add_argument("--directory", type=Path, default=Path(".demo-screenshots"), help="made anew each time")

    clickhouse = commands.add_parser(
        "clickhouse",
        help="the embedded engine behind ClickHouse's HTTP protocol, until Ctrl-C",
        description="For user default, with the password in the variable CLICKHOUSE_PASSWORD; without it, with none.",
    )
    clickhouse.add_argument("--path", type=Path, required=True, help="the engine's directory")
    clickhouse.add_argument("--port", type=int, required=True, help="of HTTP, on 127.0.0.1")

    traffic = commands.add_parser(
        "traffic", parents=[databases], help="the live application, writers and a reader, until Ctrl-C"
    )
    traffic.add_argument("--rate", type=float, default=20, help="writes per second, of all processes together")
    traffic.add_argument("--writers", type=int, default=2, help="processes that write")
    traffic.add_argument("--also", action="append", default=[], metavar="HABIT",
                         help="one more writer: stale:SECONDS, clock:SECONDS, deaf to the dual write, or silent "
                              "(some of its deletions send nothing to ClickHouse, as in PostHog 1.33)")  # fmt: skip
    traffic.add_argument("--seconds", type=float, default=math.inf)
    traffic.add_argument("--cache-seconds", type=float, default=2, help="how old a process's switches may be")
    traffic.add_argument("--flush-seconds", type=float, default=1, help="between two inserts of a consumer, about")
    traffic.add_argument("--seed", type=int, default=1)

    soak = commands.add_parser("soak", help="migrations and rollbacks under traffic and faults, proven (make soak)")
    soak.add_argument(
        "--seed", type=int, default=1, help="the same seed gives the same faults; without instance settings where odd"
    )
    soak.add_argument("--seconds", type=float, default=600)
    soak.add_argument("--rate", type=float, default=200, help="writes per second")
    soak.add_argument("--writers", type=int, default=2, help="processes that write")
    soak.add_argument("--teams", type=int, default=40)
    soak.add_argument("--rows", type=int, default=1_000_000)
    soak.add_argument("--fault-every", type=float, default=20, metavar="SECONDS")
    soak.add_argument("--replicas", type=int, default=1, help="of ClickHouse; several need Debian's zookeeper")
    soak.add_argument("--directory", type=Path, default=Path(".demo-soak"), help="made anew each time")

    options = vars(parser.parse_args())
    command = options.pop("command")
    if command not in ("clickhouse", "traffic"):  # which handle signals themselves
        end_in_good_order()
    try:
        return import_module(f"demo.{MODULES[command]}").run(**options)
    except (AirflowError, InUseError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped")
        return 0 if command == "up" else 130


if __name__ == "__main__":
    raise SystemExit(main())
