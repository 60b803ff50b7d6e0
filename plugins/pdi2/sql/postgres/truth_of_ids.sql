SELECT mapping.distinct_id, person.uuid, coalesce(mapping.version, 0)
FROM posthog_persondistinctid AS mapping
JOIN posthog_person AS person ON person.id = mapping.person_id
WHERE mapping.team_id = %(team_id)s
  AND mapping.distinct_id = ANY(%(distinct_ids)s)
