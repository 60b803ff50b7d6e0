"""The dual write: switched on as a whole, and proven by what reached the tables before any row is copied.

Only the messages' timestamps tell the time: the switch was turned on an hour ago, and each write has a given age when
the proof looks.
"""

import math
import re
import time

import pytest
from conftest import System
from pdi2.core.engines.failures import MigrationError, Reaction, reaction
from pdi2.core.report.telling import sentence
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import NAME
from pdi2.core.switch import proof
from pdi2.core.switch.dual_writes import DualWriteError
from pdi2.core.switch.proof import observe
from stories import ALICE, TEAM, add_teams, dump, enable, insert_truth, many_ids, rows_of, until

from demo.schema import Table
from demo.switches import WRITES, Switches, set_switch
from demo.writer import Writer

SETTINGS = Settings(settle_seconds=120, read_cache_seconds=60)
IN_FLIGHT = 10
IN_THE_WINDOW = 90
BEFORE_THE_WINDOW = 300
HOUR = 3600


@pytest.fixture(autouse=True)
def no_second_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "MOST_LATE_SECONDS", 0)


@pytest.fixture
def ledger(system: System) -> Ledger:
    add_teams(system, TEAM)
    return system.ledger()


def now(system: System) -> int:
    return system.clickhouse.query("SELECT toUnixTimestamp(now())").result_rows[0][0]


def writer(system: System, age: int) -> Writer:
    """A writer whose messages are `age` seconds old."""
    return system.writer(clock=lambda: now(system) - age)


def stale_writer(system: System, age: int) -> Writer:
    """A writer that never hears of the dual write, because its cache was filled before."""
    found = writer(system, age)
    found.switches = Switches(system.postgres, cache_seconds=math.inf)
    found.switches.writes()
    return found


def pass_time(system: System, seconds: int) -> None:
    """As if the switch had been turned on that much earlier."""
    _shift(system, "dual_writes_enabled", "enabled_at", seconds)


def run_began_earlier(system: System, seconds: int) -> None:
    _shift(system, "run_started", "at", seconds)


def _shift(system: System, what: str, key: str, seconds: int) -> None:
    system.postgres.execute(
        "UPDATE pdi2_migration.event SET detail = detail || jsonb_build_object(%s::text, (detail->>%s)::int - %s) "
        "WHERE what = %s",
        [key, key, seconds, what],
    )


def enabled_an_hour_ago(system: System, ledger: Ledger) -> None:
    enable(system, ledger, SETTINGS)
    pass_time(system, HOUR)


def rest_arrives(system: System) -> None:
    """The new table gets the links that only the old one has."""
    arrive = "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, version, _timestamp) "
    system.clickhouse.command(f"{arrive} SELECT team_id, distinct_id, person_id, 0, _timestamp FROM person_distinct_id")


def look(system: System, ledger: Ledger, settings: Settings = SETTINGS) -> tuple[bool, str]:
    found = observe(ledger, system.warehouse(), settings)
    return found.proven, found.message


def test_the_switch_is_thrown_as_a_whole_and_when_is_recorded(system: System, ledger: Ledger) -> None:
    before = now(system)
    enable(system, ledger, SETTINGS)

    assert system.status() == 5
    assert system.switches() == {"writes": "both", "reads": "old"}
    recorded = ledger.latest("dual_writes_enabled")
    assert recorded is not None
    assert before <= recorded["enabled_at"] <= now(system)
    assert recorded["writes_before"] == "old"
    run = ledger.current_run()
    assert run is not None
    assert (run.airflow_run, run.actor, run.ended_at) == ("a run", "a test", None)


def test_throwing_the_switch_twice_keeps_the_time_of_the_first(system: System, ledger: Ledger) -> None:
    enabled_an_hour_ago(system, ledger)
    first = ledger.latest("dual_writes_enabled")
    row = "SELECT status, started_at FROM posthog_asyncmigration"
    before = system.postgres.execute(row).fetchall()
    enable(system, ledger, SETTINGS)
    enable(system, system.ledger("the next run"), SETTINGS)

    assert ledger.latest("dual_writes_enabled") == first
    assert system.postgres.execute(row).fetchall() == before


def test_writes_that_went_back_to_the_old_table_are_proven_anew(system: System, ledger: Ledger) -> None:
    enabled_an_hour_ago(system, ledger)
    set_switch(system.postgres, WRITES, "old")
    enable(system, ledger, SETTINGS)
    recorded = ledger.latest("dual_writes_enabled")
    assert recorded is not None
    assert now(system) - recorded["enabled_at"] < HOUR / 2


def test_a_row_that_does_not_exist_is_created_as_posthog_would(system: System, ledger: Ledger) -> None:
    system.postgres.execute("DELETE FROM posthog_asyncmigration")
    enable(system, ledger, SETTINGS)
    assert system.postgres.execute("SELECT name, status, progress FROM posthog_asyncmigration").fetchall() == [
        ("0003_fill_person_distinct_id2", 5, 0)
    ]
    assert system.value("SELECT description FROM posthog_asyncmigration")


def test_without_instance_settings_the_row_alone_is_changed(system: System, ledger: Ledger) -> None:
    system.postgres.execute("DROP TABLE posthog_instancesetting")
    enabled_an_hour_ago(system, ledger)
    assert system.status() == 5
    both = writer(system, IN_THE_WINDOW)
    both.create(TEAM, "id")
    both.flush()
    assert look(system, ledger)[0]


def test_dual_writes_are_turned_on_as_a_whole_or_not_at_all(system: System, ledger: Ledger) -> None:
    system.clickhouse.command("DROP TABLE person_distinct_id")
    ledger.create()
    before = dump(system)
    with pytest.raises(Exception, match="person_distinct_id"):
        enable(system, ledger, SETTINGS)
    assert dump(system) == before


def test_too_many_rows_from_the_future_are_reported_with_a_next_step(system: System, ledger: Ledger) -> None:
    many_ids(system, 10_001, second="now() + 10000 + number")
    ledger.create()
    before = dump(system)
    with pytest.raises(DualWriteError, match="clock.*is wrong.*Nothing was changed.*trigger the run again") as wrong:
        enable(system, ledger, SETTINGS)
    assert reaction(wrong.value) is Reaction.FAIL
    assert dump(system) == before


def test_a_writer_of_both_tables_is_proof(system: System, ledger: Ledger) -> None:
    enabled_an_hour_ago(system, ledger)
    both = writer(system, IN_THE_WINDOW)
    ids = [f"id {number}" for number in range(10)]
    for id_ in ids:
        both.create(TEAM, id_)
    person = both.create(TEAM, "the winner")
    both.identify(TEAM, ids[0], person)
    both.relink(TEAM, ids[1])
    both.delete(TEAM, ids[2])
    both.flush()

    proven, message = look(system, ledger)
    assert proven, message
    assert re.search(r"Proven: \d+ links written in the last 120 s, and the new table lacks none", message)
    recorded = ledger.latest("dual_writes_proven")
    assert recorded is not None
    assert recorded["links"] >= len(ids)


def test_an_idle_system_is_accepted_after_the_full_window_only(system: System, ledger: Ledger) -> None:
    enable(system, ledger, SETTINGS)
    proven, message = look(system, ledger)
    assert (proven, "The window is full in" in message) == (False, True)

    pass_time(system, SETTINGS.settle_seconds + int(SETTINGS.in_flight) - 20)
    assert not look(system, ledger)[0]

    pass_time(system, 21)
    proven, message = look(system, ledger)
    assert proven
    assert "Nothing was written in the last 120 s, so nothing was proven" in message


@pytest.mark.parametrize("why", ["the consumer lags", "clocks are slow"])
def test_a_consumer_that_lags_is_not_taken_for_an_idle_system(system: System, ledger: Ledger, why: str) -> None:
    system.writer().create(TEAM, "before the run")  # its link never came, and tells nothing of now
    enabled_an_hour_ago(system, ledger)
    late = writer(system, BEFORE_THE_WINDOW)
    late.create(TEAM, "late \N{SNOWMAN}")
    if why == "clocks are slow":
        late.flush()

    proven, message = look(system, ledger)
    assert (proven, "Postgres has got new ids since this run began" in message) == (False, True)
    watched = ledger.latest("dual_writes_watched")
    assert watched is not None
    assert watched["why"] == "late"

    run_began_earlier(system, SETTINGS.proof_limit_seconds + 1)
    _shift(system, "dual_writes_watched", "until", SETTINGS.proof_limit_seconds + 1)
    if why == "clocks are slow":
        assert look(system, ledger)[0], "the link may be one of the run's by now"
        return
    with pytest.raises(DualWriteError, match="the consumer of person_distinct_id lags.*Nothing was copied") as wrong:
        look(system, ledger)
    assert reaction(wrong.value) is Reaction.FAIL
    assert ledger.latest("dual_writes_proven") is None

    late.flush()
    assert look(system, ledger)[0], "what arrived is in no window any more, and nothing else came"


def test_a_run_that_waits_for_nothing_still_looks(system: System, ledger: Ledger) -> None:
    no_wait = Settings(settle_seconds=0, read_cache_seconds=0)
    enable(system, ledger, no_wait)
    assert look(system, ledger, no_wait)[0]

    stale = writer(system, 5)
    set_switch(system.postgres, WRITES, "old")
    stale.create(TEAM, "missed")
    stale.flush()
    pass_time(system, 60)
    with pytest.raises(DualWriteError, match="missed"):
        look(system, ledger, no_wait)


@pytest.mark.parametrize(("age", "proven"), [(BEFORE_THE_WINDOW, True), (IN_THE_WINDOW, False)])
def test_a_run_that_waits_for_nothing_looks_at_the_last_minutes_only(
    system: System, ledger: Ledger, age: int, proven: bool
) -> None:
    """Links of weeks ago take long to read, and a writer whose cache had not run out then is right by now."""
    no_wait = Settings(settle_seconds=0, read_cache_seconds=0)
    stale = stale_writer(system, age)
    enable(system, ledger, no_wait)
    pass_time(system, HOUR)
    run_began_earlier(system, HOUR)
    stale.create(TEAM, "missed")
    stale.flush()
    if proven:
        assert look(system, ledger, no_wait)[0]
    else:
        with pytest.raises(DualWriteError, match="missed"):
            look(system, ledger, no_wait)


def test_a_proof_before_the_switch_is_refused(system: System, ledger: Ledger) -> None:
    ledger.create()
    with pytest.raises(MigrationError, match="never enabled by this project. Clear enable_dual_writes"):
        look(system, ledger)


def test_after_old_writes_have_ended_a_proof_that_is_cleared_blames_no_consumer(system: System, ledger: Ledger) -> None:
    """Postgres has new ids, of which the old table will never have a link."""
    enable(system, ledger, SETTINGS)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 2 WHERE name = %s", [NAME])
    set_switch(system.postgres, WRITES, "new")
    insert_truth(system, ALICE)
    run_began_earlier(system, HOUR)

    seen = observe(ledger, system.warehouse(), Settings(settle_seconds=0, read_cache_seconds=0))

    assert (seen.proven, "Reads are on the new table already" in seen.message) == (True, True)


def test_a_stale_writer_is_waited_for_and_then_caught_with_examples(system: System, ledger: Ledger) -> None:
    stale = stale_writer(system, IN_THE_WINDOW)
    enabled_an_hour_ago(system, ledger)
    ids = [f"o'brien {number}" for number in range(7)]
    for id_ in ids:
        stale.create(TEAM, id_)
    stale.flush()

    run_began_earlier(system, 100)
    proven, message = look(system, ledger)
    assert not proven
    assert "7 links reached person_distinct_id and not person_distinct_id2" in message
    assert "Waiting" in message

    run_began_earlier(system, SETTINGS.proof_limit_seconds - 100)
    with pytest.raises(DualWriteError) as caught:
        look(system, ledger)
    told = str(caught.value)
    assert reaction(caught.value) is Reaction.FAIL
    assert "7 links" in told
    assert told.count(f"team {TEAM}, distinct_id") == 5
    assert sum(f'''"{id_}" at ''' in told for id_ in ids) == 5
    assert time.strftime("%Y-%m-%d %H:", time.gmtime(now(system) - IN_THE_WINDOW)) in told
    assert "Nothing was copied" in told
    assert "trigger" in told
    assert ledger.latest("dual_writes_missed") is not None
    assert rows_of(system, Table.NEW) == []
    assert system.switches() == {"writes": "both", "reads": "old"}


def test_a_link_that_comes_between_the_two_looks_is_late_and_not_missed(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = stale_writer(system, IN_THE_WINDOW)
    enabled_an_hour_ago(system, ledger)
    half.create(TEAM, "late")
    half.flush()
    run_began_earlier(system, SETTINGS.proof_limit_seconds)
    monkeypatch.setattr("time.sleep", lambda seconds: rest_arrives(system))
    assert look(system, ledger)[0]


def test_a_link_has_its_whole_allowance_though_its_stamp_is_cut_to_seconds() -> None:
    """_timestamp is the time of Kafka's message in whole seconds: 99 may be 99.9, and the look at 100.0."""
    assert proof.due(100, Settings(in_flight_seconds=1)) == 98


def test_a_burst_of_a_stale_writer_that_does_not_fit_into_memory_is_caught(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing came after it, so the newest links that fit into memory would be none, and the system idle."""
    monkeypatch.setattr("pdi2.core.switch.links.MOST_LINKS", 10)
    stale = stale_writer(system, IN_THE_WINDOW)
    enabled_an_hour_ago(system, ledger)
    for number in range(60):
        stale.create(TEAM, f"in the burst {number}")
    stale.flush()
    run_began_earlier(system, SETTINGS.proof_limit_seconds)

    with pytest.raises(
        DualWriteError, match=r"and not person_distinct_id2 \(one id in 6 was looked at\): .*in the burst"
    ):
        look(system, ledger)

    rest_arrives(system)
    assert "lacks none (one id in 6 was looked at)" in look(system, ledger)[1]
    told, _ = sentence("dual_writes_proven", ledger.latest("dual_writes_proven") or {})
    assert told == "Dual writes are proven: 60 links in 120 s reached both tables. One id in 6 was looked at."


def test_one_stale_writer_among_good_ones_is_caught(system: System, ledger: Ledger) -> None:
    stale = stale_writer(system, IN_THE_WINDOW)
    enabled_an_hour_ago(system, ledger)
    good = writer(system, IN_THE_WINDOW + 5)
    person = good.create(TEAM, "good")
    good.create(TEAM, "relinked")
    good.flush()
    stale.identify(TEAM, "relinked", person)
    stale.flush()
    run_began_earlier(system, HOUR)

    with pytest.raises(DualWriteError, match="1 link.*relinked"):
        look(system, ledger)


def test_a_cache_that_runs_out_passes_as_the_window_slides(system: System, ledger: Ledger) -> None:
    stale = stale_writer(system, IN_THE_WINDOW)
    enabled_an_hour_ago(system, ledger)
    stale.create(TEAM, "before the cache ran out")
    stale.flush()
    assert not look(system, ledger)[0]

    system.clickhouse.command(
        f"ALTER TABLE person_distinct_id UPDATE _timestamp = _timestamp - {BEFORE_THE_WINDOW} WHERE 1",
        settings={"mutations_sync": 1},
    )
    both = writer(system, IN_THE_WINDOW)
    both.create(TEAM, "after")
    both.flush()
    proven, message = look(system, ledger)
    assert proven, message
    assert "1 link written" in message


def test_an_earlier_miss_takes_no_time_from_a_consumer_that_lags(system: System, ledger: Ledger) -> None:
    stale = stale_writer(system, IN_THE_WINDOW)
    enabled_an_hour_ago(system, ledger)
    stale.create(TEAM, "before the cache ran out")
    stale.flush()
    assert not look(system, ledger)[0]

    system.clickhouse.command("TRUNCATE TABLE person_distinct_id")  # as if it had left the window
    system.writer().create(TEAM, "on its way")
    run_began_earlier(system, SETTINGS.proof_limit_seconds + 1)
    proven, message = look(system, ledger)
    assert (proven, message.endswith("Waiting.")) == (False, True)


@pytest.mark.parametrize(
    ("age", "proven"),
    [(IN_FLIGHT, True), (IN_THE_WINDOW, False), (BEFORE_THE_WINDOW, True)],
    ids=["still in flight", "in the window", "before the window"],
)
def test_only_a_miss_within_the_window_counts(system: System, ledger: Ledger, age: int, proven: bool) -> None:
    stale = stale_writer(system, age)
    enabled_an_hour_ago(system, ledger)
    run_began_earlier(system, BEFORE_THE_WINDOW)
    stale.create(TEAM, "id")
    stale.flush()
    assert look(system, ledger)[0] is proven


def test_a_link_that_arrives_late_is_no_miss(system: System, ledger: Ledger) -> None:
    enabled_an_hour_ago(system, ledger)
    both = writer(system, IN_THE_WINDOW)
    both.create(TEAM, "id")
    late = both.outbox.pop()
    assert late.table is Table.NEW
    both.flush()
    assert not look(system, ledger)[0]

    both.outbox.append(late)
    both.flush()
    assert look(system, ledger)[0]


@pytest.mark.parametrize("change", ["deleted", "relinked"])
def test_an_id_that_moved_on_is_no_miss(system: System, ledger: Ledger, change: str) -> None:
    """The link in the window is lost on its way to the new table, but what came after it is not."""
    enabled_an_hour_ago(system, ledger)
    both = writer(system, IN_THE_WINDOW)
    both.create(TEAM, "id")
    both.outbox.pop()
    both.flush()
    later = writer(system, IN_FLIGHT)
    if change == "deleted":
        later.delete(TEAM, "id")
    else:
        later.identify(TEAM, "id", later.create(TEAM, "other"))
    later.flush()
    assert look(system, ledger)[0]


@pytest.mark.parametrize(
    ("stamped", "proven"), [("before", True), ("after", False)], ids=["before the switch", "after the switch"]
)
def test_a_row_from_the_future_is_evidence_only_if_written_after_the_switch(
    system: System, ledger: Ledger, stamped: str, proven: bool
) -> None:
    no_wait = Settings(settle_seconds=0, read_cache_seconds=0)

    def old_only() -> int:
        future = now(system) + 3
        stale = system.writer(clock=lambda: future)
        stale.create(TEAM, "from the future")
        stale.outbox = [message for message in stale.outbox if message.table is Table.OLD]
        stale.flush()
        return future

    before = old_only() if stamped == "before" else 0
    enable(system, ledger, no_wait)
    future = before or old_only()
    until(lambda: now(system) >= future)
    if proven:
        assert "Nothing was written" in look(system, ledger, no_wait)[1], "nor is it proof"
    else:
        with pytest.raises(DualWriteError, match="from the future"):
            look(system, ledger, no_wait)


def test_merges_of_either_table_hide_no_miss_and_make_none(system: System, ledger: Ledger) -> None:
    stale = stale_writer(system, IN_THE_WINDOW)
    enabled_an_hour_ago(system, ledger)
    both = writer(system, IN_THE_WINDOW)
    for id_ in ["a", "b"]:
        both.create(TEAM, id_)
        both.relink(TEAM, id_)
    both.delete(TEAM, "b")
    both.flush()
    both.flush()
    for table in Table:
        system.clickhouse.command(f"OPTIMIZE TABLE {table} FINAL")
    assert look(system, ledger)[0]

    stale.create(TEAM, "missed")
    stale.flush()
    system.clickhouse.command("OPTIMIZE TABLE person_distinct_id FINAL")
    proven, message = look(system, ledger)
    assert (proven, "1 link " in message, '"missed"' in message) == (False, True, True)


@pytest.mark.parametrize("and_then", ["it is there", "it is gone again"])
def test_an_id_that_comes_back_below_its_past_blames_no_writer(system: System, ledger: Ledger, and_then: str) -> None:
    """PostHog 1.31 to 1.33 delete without a tombstone, so a merge drops the row of version 0 and keeps an old one."""
    enabled_an_hour_ago(system, ledger)
    early, late = writer(system, BEFORE_THE_WINDOW), writer(system, IN_THE_WINDOW)
    early.create(TEAM, "id")
    early.relink(TEAM, "id")
    early.delete(TEAM, "id", silently=True)
    late.create(TEAM, "id", version=None)
    early.flush()
    late.flush()
    system.clickhouse.command("OPTIMIZE TABLE person_distinct_id2 FINAL")
    assert rows_of(system, Table.NEW)[0][3:5] == (0, 1), "of its past"
    if and_then == "it is gone again":
        late.delete(TEAM, "id", silently=True)

    assert look(system, ledger)[0]


def test_a_writer_that_ignores_the_switch_is_named_though_others_bring_ids_back(system: System, ledger: Ledger) -> None:
    enabled_an_hour_ago(system, ledger)
    early, deaf = writer(system, BEFORE_THE_WINDOW), stale_writer(system, IN_THE_WINDOW)
    deaf.switches.writes = lambda: frozenset({Table.OLD})  # type: ignore[method-assign]
    early.create(TEAM, "moved")
    person = early.create(TEAM, "other")
    early.flush()
    deaf.identify(TEAM, "moved", person)
    deaf.create(TEAM, "new")
    deaf.flush()

    proven, message = look(system, ledger)
    assert not proven
    assert message.startswith("2 links reached person_distinct_id and not person_distinct_id2: ")
