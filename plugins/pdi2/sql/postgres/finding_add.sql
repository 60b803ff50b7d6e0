INSERT INTO pdi2_migration.finding (team_id, distinct_id, kind, repaired, clickhouse, postgres)
VALUES (%(team_id)s, %(distinct_id)s, %(kind)s, %(repaired)s, %(clickhouse)s, %(postgres)s)
ON CONFLICT (team_id, md5(distinct_id), kind) DO UPDATE
SET repaired = excluded.repaired,
    found_at = clock_timestamp(),
    clickhouse = excluded.clickhouse,
    postgres = excluded.postgres
