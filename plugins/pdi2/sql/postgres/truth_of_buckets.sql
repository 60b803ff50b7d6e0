SELECT mapping.distinct_id, person.uuid, coalesce(mapping.version, 0)
FROM posthog_persondistinctid AS mapping
JOIN posthog_person AS person ON person.id = mapping.person_id
WHERE mapping.team_id = %(team_id)s
  AND ('x' || substr(md5(mapping.distinct_id), 1, 16))::bit(64)::bigint & %(mask)s = ANY(%(buckets)s)
