-- The teams' ids. `content` is the same hash as in seen.sql of ClickHouse: the first 8 bytes of SHA-256 over the 16
-- bytes of the person and the bytes of the id, in the client's encoding, which offer_workers.sql sets. OFFSET 0 keeps
-- the planner from computing the hash again for each use. A varchar matches no function or operator of Postgres exactly,
-- so one that somebody made for it would go first; that is why pg_catalog is named here, and ::text in other files.
SELECT mapping.team_id, mapping.distinct_id, mapping.id, coalesce(mapping.version, 0) AS version,
       ('x' || encode(substr(sha256(uuid_send(person.uuid) || pg_catalog.textsend(mapping.distinct_id)), 1, 8), 'hex'))
           ::bit(64)::bigint AS content
FROM posthog_persondistinctid AS mapping
JOIN posthog_person AS person ON person.id = mapping.person_id
WHERE mapping.team_id = ANY(%(team_ids)s)
OFFSET 0
