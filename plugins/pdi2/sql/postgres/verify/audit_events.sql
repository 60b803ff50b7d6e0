SELECT what, at, detail
FROM pdi2_migration.event
WHERE what IN ('audit_planned', 'audited') AND detail ->> 'run' = %(run)s
ORDER BY id
