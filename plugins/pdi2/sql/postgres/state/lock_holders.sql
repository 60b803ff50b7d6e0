-- Which other sessions have the migration's lock, or a team's if one is named (lock_claim.sql, team_lock.sql). Of another
-- role's session the role sees no more than these, and with pg_monitor all.
SELECT format('process %%s of role %%s', pg_locks.pid, coalesce(quote_ident(usename), '(unknown)'))
       || coalesce(to_char(backend_start AT TIME ZONE 'UTC', '", connected since" YYYY-MM-DD HH24:MI:SS "UTC"'), '')
       || coalesce(', application ' || to_json(nullif(application_name, '')), '')
       || coalesce(', from ' || host(client_addr), '')
FROM pg_locks
CROSS JOIN (SELECT hashtextextended('pdi2_migration team', %(team_id)s::bigint)) AS of_team (key)
LEFT JOIN pg_stat_activity ON pg_stat_activity.pid = pg_locks.pid
WHERE locktype = 'advisory' AND granted AND pg_locks.pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND CASE WHEN key IS NULL THEN classid = hashtext('pdi2_migration')::oid AND objid = 0 AND objsubid = 2
           ELSE (classid::bigint << 32) | objid::bigint = key AND objsubid = 1 END
ORDER BY pg_locks.pid
LIMIT 5
