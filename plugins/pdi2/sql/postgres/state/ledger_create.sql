-- May run again: it adds what a ledger of an earlier release lacks. A role that was given an existing schema may not
-- have the right to create one, not even with IF NOT EXISTS.
-- Two of them at the same moment, such as the first run and an audit, take turns; and to_regnamespace may remember that
-- there was no schema.
SELECT pg_advisory_xact_lock(hashtext('pdi2_migration.create'));
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'pdi2_migration') THEN CREATE SCHEMA pdi2_migration; END IF;
END $$;

-- One row per run. The run with the greatest id owns the migration: an older run that comes back stops.
CREATE TABLE IF NOT EXISTS pdi2_migration.run (
    id bigserial PRIMARY KEY,
    airflow_run text NOT NULL,
    actor text NOT NULL,
    settings jsonb NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    outcome text
);

CREATE TABLE IF NOT EXISTS pdi2_migration.team (
    team_id bigint PRIMARY KEY,
    status text NOT NULL CHECK (status IN ('planned', 'copying', 'copied', 'verified', 'failed')),
    rows_source bigint NOT NULL,
    rows_copied bigint NOT NULL DEFAULT 0,
    slices_done int NOT NULL DEFAULT 0,
    slice_rows bigint,
    memory_budget bigint,
    attempts int NOT NULL DEFAULT 0,
    copy_seconds double precision NOT NULL DEFAULT 0,
    peak_memory bigint,
    old_differs bigint,
    error text,
    planned_at timestamptz NOT NULL DEFAULT now(),
    copied_at timestamptz,
    verified_at timestamptz
);
-- Where both databases stood when the verification began. What is newer is compared again before the switch.
ALTER TABLE pdi2_migration.team ADD COLUMN IF NOT EXISTS mark jsonb;
ALTER TABLE pdi2_migration.team
    ADD COLUMN IF NOT EXISTS digest text,
    ADD COLUMN IF NOT EXISTS truth_digest text;
-- How many ids end in a tombstone of the application and are not in Postgres.
ALTER TABLE pdi2_migration.team ADD COLUMN IF NOT EXISTS tombstones bigint;
-- How long verifying the team took, or the team's share if teams were verified together.
ALTER TABLE pdi2_migration.team ADD COLUMN IF NOT EXISTS verify_seconds double precision;
-- The run that last planned the team, and the map index of the team's tasks in that run.
ALTER TABLE pdi2_migration.team
    ADD COLUMN IF NOT EXISTS airflow_run text,
    ADD COLUMN IF NOT EXISTS map_index int;

-- A finished slice is a checkpoint: distinct_ids from lower (included) up to upper (not included; null: the end).
CREATE TABLE IF NOT EXISTS pdi2_migration.slice (
    team_id bigint NOT NULL REFERENCES pdi2_migration.team,
    lower bytea NOT NULL,
    upper bytea,
    rows_copied bigint NOT NULL,
    seconds double precision NOT NULL,
    peak_memory bigint,
    finished_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, lower)
);

CREATE TABLE IF NOT EXISTS pdi2_migration.finding (
    team_id bigint NOT NULL,
    distinct_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('missing', 'stale', 'wrong_person', 'resurrected', 'ahead')),
    repaired boolean NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    clickhouse jsonb,
    postgres jsonb
);
-- What the old table's reader (old), the new table (clickhouse) and Postgres said about the id; null: nothing. Then
-- what was done about it, and the row that was written.
ALTER TABLE pdi2_migration.finding
    ADD COLUMN IF NOT EXISTS old jsonb,
    ADD COLUMN IF NOT EXISTS action text,
    ADD COLUMN IF NOT EXISTS written jsonb;
-- By what Postgres's varchar(400) can hold, because hashes can be made to collide, and by hash for what is longer, because
-- that may be too long for an index. Not by md5, because servers in FIPS mode refuse it.
CREATE UNIQUE INDEX IF NOT EXISTS finding_identity_by_id
    ON pdi2_migration.finding (team_id, left(distinct_id, 400), hashtextextended(distinct_id, 0), kind);
DROP INDEX IF EXISTS pdi2_migration.finding_identity, pdi2_migration.finding_identity_by_hash;
-- A publication of all tables (FOR ALL TABLES, as Debezium makes it) refuses updates of a table without an identity, and an
-- index of expressions is none.
ALTER TABLE pdi2_migration.finding REPLICA IDENTITY FULL;

CREATE TABLE IF NOT EXISTS pdi2_migration.event (
    id bigserial PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    what text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX IF NOT EXISTS event_by_name ON pdi2_migration.event (what, id);

-- The certificate's two files, for the page, because the API server often cannot read the place `report` wrote them to.
CREATE TABLE IF NOT EXISTS pdi2_migration.certificate (
    run_id bigint PRIMARY KEY REFERENCES pdi2_migration.run,
    name text NOT NULL,
    json text NOT NULL,
    html text NOT NULL
);
