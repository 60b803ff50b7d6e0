"""What a soak prints when it is over: each fault with its effect, and each DAG run."""

from dataclasses import dataclass

from rich.table import Table

from demo.chaos import Mishap

LINE = 300


@dataclass
class Attempt:
    """One run of a DAG."""

    dag_id: str
    began: float
    ended: float | None = None
    outcome: str = ""


@dataclass
class Blow:
    """One mishap and its effect."""

    mishap: Mishap
    at: float
    during: str
    failed_before: int
    """How many tasks had failed before, according to the ledger."""
    effect: str = ""


def blows(struck: list[Blow]) -> Table:
    table = Table("", "at", "fault", "during", "what happened", title="Faults", title_justify="left")
    for number, blow in enumerate(struck, 1):
        table.add_row(str(number), f"{blow.at:.0f} s", str(blow.mishap), blow.during, blow.effect)
    return table


def attempts(made: list[Attempt]) -> Table:
    table = Table("began", "took", "run", "outcome", title="Runs", title_justify="left")
    for one in made:
        took = f"{one.ended - one.began:.0f} s" if one.ended else ""
        table.add_row(f"{one.began:.0f} s", took, one.dag_id, one.outcome[:LINE])
    return table
