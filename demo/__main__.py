"""`python -m demo`: the whole migration on one machine, without containers."""

import argparse
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="seed, migrate through Airflow, and report (make demo)")
    run.add_argument("--rows", type=int, default=1_000_000, help="rows of the old table, about")
    run.add_argument("--teams", type=int, default=40)
    run.add_argument("--seed", type=int, default=1, help="the same seed gives the same data")
    run.add_argument("--directory", type=Path, default=Path(".demo"), help="made anew each time")

    up = commands.add_parser("up", help="Airflow with its UI on everything it needs, until Ctrl-C (make up)")
    up.add_argument("--rows", type=int, default=300_000)
    up.add_argument("--teams", type=int, default=40)
    up.add_argument("--directory", type=Path, default=Path(".demo-up"), help="made anew each time")
    up.add_argument("--port", type=int, default=8080, help="of Airflow, on 127.0.0.1")

    serve = commands.add_parser("clickhouse", help="serve the embedded engine over ClickHouse's HTTP protocol")
    serve.add_argument("--path", type=Path, required=True, help="the engine's directory")
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--user", default="default")
    serve.add_argument("--password", default="")

    options = vars(parser.parse_args())
    match options.pop("command"):
        case "run":
            from demo.story import tell

            return tell(**options)
        case "up":
            from demo.up import run as serve_everything

            return serve_everything(**options)
        case _:
            from demo.clickhouse_server import serve as serve_clickhouse

            serve_clickhouse(**options)
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
