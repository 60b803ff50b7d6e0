SELECT mapping.team_id, mapping.distinct_id, coalesce(mapping.version, 0)
FROM unnest(%(team_ids)s::bigint[], %(distinct_ids)s::text[]) AS asked (team_id, distinct_id)
JOIN posthog_persondistinctid AS mapping
    ON mapping.team_id = asked.team_id AND mapping.distinct_id = asked.distinct_id
