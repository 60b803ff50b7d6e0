"""`python -m demo`: the whole migration on one machine, without containers."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from demo.alone import InUseError, end_in_good_order
from demo.dag_run import AirflowError

_TRAFFIC = """Writers and a reader over the wire protocols, until Ctrl-C. ClickHouse's password is taken from the
environment variable CLICKHOUSE_PASSWORD."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="seed, migrate through Airflow, and report (make demo)")
    run.add_argument("--rows", type=int, default=150_000, help="rows of the old table, about")
    run.add_argument("--teams", type=int, default=8)
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

    seed = commands.add_parser(
        "seed", help="create the application's tables and fill them, once",
        description="Takes ClickHouse's password from the environment variable CLICKHOUSE_PASSWORD.",
    )  # fmt: skip
    seed.add_argument("--postgres", metavar="URI", required=True, help="the application's database")
    seed.add_argument("--clickhouse-host", default="127.0.0.1")
    seed.add_argument("--clickhouse-port", type=int, required=True, help="of HTTP")
    seed.add_argument("--clickhouse-user", default="default")
    seed.add_argument("--clickhouse-database", default="default")
    seed.add_argument("--rows", type=int, default=300_000, help="rows of the old table, about")
    seed.add_argument("--teams", type=int, default=40)

    serve = commands.add_parser("clickhouse", help="serve the embedded engine over ClickHouse's HTTP protocol")
    serve.add_argument("--path", type=Path, required=True, help="the engine's directory")
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--user", default="default")
    serve.add_argument("--password", default="")

    pictures = commands.add_parser("screenshots", help="take the README's pictures in Chromium (make screenshots)")
    pictures.add_argument("--pictures", type=Path, default=Path("docs/screenshots"))
    pictures.add_argument("--directory", type=Path, default=Path(".demo-screenshots"), help="made anew each time")
    traffic = commands.add_parser("traffic", help="the live application, until Ctrl-C",
                                  description=_TRAFFIC)  # fmt: skip
    traffic.add_argument("--postgres", metavar="URI", required=True, help="the application's database")
    traffic.add_argument("--clickhouse-host", default="127.0.0.1")
    traffic.add_argument(
        "--clickhouse-port", type=int, required=True, help="of HTTP; the password is CLICKHOUSE_PASSWORD"
    )
    traffic.add_argument("--clickhouse-user", default="default")
    traffic.add_argument("--clickhouse-database", default="default")
    traffic.add_argument("--rate", type=float, default=20, help="writes per second, of all processes together")
    traffic.add_argument("--writers", type=int, default=2, help="processes that write")
    traffic.add_argument("--also", action="append", default=[], metavar="HABIT",
                         help="one more writer: stale:SECONDS, clock:SECONDS, deaf to the dual write, or silent "
                              "(some of its deletions send nothing to ClickHouse, as in PostHog 1.33)")  # fmt: skip
    traffic.add_argument("--seconds", type=float, default=math.inf)
    traffic.add_argument("--cache-seconds", type=float, default=2, help="how old a process's switches may be")
    traffic.add_argument("--flush-seconds", type=float, default=1, help="between two inserts of a consumer, about")
    traffic.add_argument("--seed", type=int, default=1)
    traffic.add_argument("--summary", type=Path, metavar="FILE", help="where to write the counts, as JSON")

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
    if command not in ("traffic", "clickhouse"):  # these two handle signals themselves
        end_in_good_order()
    try:
        return _run(command, options)
    except (AirflowError, InUseError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped")
        return 0 if command == "up" else 130


def _run(command: str, options: dict[str, Any]) -> int:
    match command:
        case "run":
            from demo.story import tell

            return tell(**options)
        case "up":
            from demo.up import run as serve_everything

            return serve_everything(**options)
        case "seed":
            from demo.prepare import run as prepare

            return prepare(**options)
        case "screenshots":
            from demo.screenshots import run as take_screenshots

            return take_screenshots(**options)
        case "traffic":
            from demo.traffic import run as serve_traffic

            return serve_traffic(**options)
        case "soak":
            from demo.soak import run as soak_everything

            return soak_everything(**options)
        case _:
            from demo.clickhouse_server import serve as serve_clickhouse

            serve_clickhouse(**options)
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
