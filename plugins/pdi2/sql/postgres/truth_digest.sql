-- The hash is the one that digest_*.sql of ClickHouse computes: the first 8 bytes of md5 as a signed integer.
SELECT bucket, count(*), sum(content)::text
FROM (
    SELECT ('x' || substr(md5(mapping.distinct_id), 1, 16))::bit(64)::bigint & %(mask)s AS bucket,
           ('x' || substr(md5(person.uuid::text || mapping.distinct_id), 1, 16))::bit(64)::bigint AS content
    FROM posthog_persondistinctid AS mapping
    JOIN posthog_person AS person ON person.id = mapping.person_id
    WHERE mapping.team_id = %(team_id)s
) AS truth
GROUP BY bucket
