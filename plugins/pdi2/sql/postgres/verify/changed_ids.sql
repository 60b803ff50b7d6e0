-- The age of a row that was frozen more than 2^31 transactions ago is negative, because its xmin stays as it was.
SELECT mapping.team_id, mapping.distinct_id
FROM posthog_persondistinctid AS mapping
JOIN pdi2_migration.team ON team.team_id = mapping.team_id
WHERE mapping.team_id = ANY(%(team_ids)s)
  AND age(mapping.xmin) BETWEEN 0 AND age(((team.mark ->> 'xid')::bigint & 4294967295)::text::xid)
