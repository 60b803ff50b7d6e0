-- What happened to teams since they were verified: how many of their rows are newer, by the transaction that wrote
-- them, and whether rows are gone, because a deleted row shows no transaction. If the mark says nothing (another
-- server, or too long ago), everything counts as new. Both ages count back from the same transaction, which may be
-- newer than the snapshot's, and the age of a row that was frozen 2^31 transactions ago is negative. `seen`: how many
-- ids a reader of the new table saw then.
WITH verified AS (
    SELECT team_id,
           mark ->> 'server' = (SELECT system_identifier::text FROM pg_control_system()) AS here,
           (mark ->> 'at')::bigint AS marked_at,
           mark ->> 'mutation' AS mutation,
           txid_snapshot_xmax(txid_current_snapshot()) - (mark ->> 'xid')::bigint AS transactions,
           age(((mark ->> 'xid')::bigint & 4294967295)::text::xid) AS mark_age,
           (mark ->> 'rows')::bigint AS rows,
           (mark ->> 'ids')::numeric AS ids,
           (mark ->> 'last')::bigint AS last,
           coalesce(split_part(digest, ':', 1)::bigint, 0) AS seen
    FROM pdi2_migration.team
    WHERE status = 'verified'
    OFFSET 0  -- evaluated once: Postgres 11 has no other way to say so
)
SELECT verified.team_id,
       verified.marked_at,
       verified.mutation,
       count(*) FILTER (WHERE age(mapping.xmin) BETWEEN 0 AND verified.mark_age) AS changed,
       coalesce(NOT verified.here OR verified.transactions NOT BETWEEN 0 AND 2000000000
                OR verified.rows <> count(*) FILTER (WHERE mapping.id <= verified.last)
                OR verified.ids <> coalesce(sum(mapping.id) FILTER (WHERE mapping.id <= verified.last), 0), true) AS unknown,
       verified.seen
FROM verified
LEFT JOIN posthog_persondistinctid AS mapping ON mapping.team_id = verified.team_id
GROUP BY verified.team_id, verified.marked_at, verified.mutation, verified.here, verified.transactions, verified.mark_age,
         verified.rows, verified.ids, verified.last, verified.seen
