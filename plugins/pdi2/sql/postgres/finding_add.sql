INSERT INTO pdi2_migration.finding (team_id, distinct_id, kind, repaired, old, clickhouse, postgres, action, written)
VALUES (%(team_id)s, %(distinct_id)s, %(kind)s, %(repaired)s, %(old)s, %(clickhouse)s, %(postgres)s, %(action)s,
        %(written)s)
ON CONFLICT (team_id, hashtextextended(distinct_id, 0), kind) DO UPDATE
SET repaired = excluded.repaired,
    found_at = clock_timestamp(),
    old = excluded.old,
    clickhouse = excluded.clickhouse,
    postgres = excluded.postgres,
    action = excluded.action,
    written = excluded.written
