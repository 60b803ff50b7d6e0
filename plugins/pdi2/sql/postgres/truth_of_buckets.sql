SELECT mapping.team_id, mapping.distinct_id, person.uuid
FROM posthog_persondistinctid AS mapping
JOIN posthog_person AS person ON person.id = mapping.person_id
WHERE mapping.team_id = ANY(%(team_ids)s)
  AND ('x' || substr(md5(mapping.distinct_id), 1, 16))::bit(64)::bigint & %(mask)s = ANY(%(buckets)s)
