INSERT INTO pdi2_migration.finding (team_id, distinct_id, kind, repaired, old, clickhouse, postgres, action, written)
SELECT DISTINCT ON (team_id, left(distinct_id, 400), hashtextextended(distinct_id, 0), kind)
       team_id, distinct_id, kind, repaired, old, clickhouse, postgres, action, written
FROM jsonb_to_recordset(%(findings)s) AS found (team_id bigint, distinct_id text, kind text, repaired boolean, old jsonb,
                                                clickhouse jsonb, postgres jsonb, action text, written jsonb)
ON CONFLICT (team_id, left(distinct_id, 400), hashtextextended(distinct_id, 0), kind) DO UPDATE
SET repaired = excluded.repaired,
    found_at = clock_timestamp(),
    old = excluded.old,
    clickhouse = excluded.clickhouse,
    postgres = excluded.postgres,
    action = excluded.action,
    written = excluded.written
