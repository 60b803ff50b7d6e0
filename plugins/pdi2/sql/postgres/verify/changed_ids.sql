SELECT mapping.team_id, mapping.distinct_id
FROM posthog_persondistinctid AS mapping
JOIN pdi2_migration.team ON team.team_id = mapping.team_id
WHERE mapping.team_id = ANY(%(team_ids)s)
  AND age(mapping.xmin) <= age(((team.mark ->> 'xid')::bigint & 4294967295)::text::xid)
