SELECT mapping.team_id, mapping.distinct_id, person.uuid, coalesce(mapping.version, 0)
FROM unnest(%(team_ids)b::bigint[], %(distinct_ids)b::text[]) AS wanted (team_id, distinct_id)
JOIN posthog_persondistinctid AS mapping
    ON mapping.team_id = wanted.team_id AND mapping.distinct_id::text = wanted.distinct_id
JOIN posthog_person AS person ON person.id = mapping.person_id
