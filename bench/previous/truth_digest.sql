-- The hash is the one that digest_new.sql of ClickHouse computes: the first 8 bytes of md5 as a signed integer.
SELECT team_id, bucket, count(*), sum(content)::text
FROM (
    SELECT mapping.team_id,
           ('x' || substr(md5(mapping.distinct_id), 1, 16))::bit(64)::bigint & %(mask)s AS bucket,
           ('x' || substr(md5(person.uuid::text || mapping.distinct_id), 1, 16))::bit(64)::bigint AS content
    FROM posthog_persondistinctid AS mapping
    JOIN posthog_person AS person ON person.id = mapping.person_id
    WHERE mapping.team_id = ANY(%(team_ids)s)
) AS truth
GROUP BY team_id, bucket
