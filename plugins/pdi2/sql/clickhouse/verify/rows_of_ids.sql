-- Every row whose version may equal or exceed that of Postgres's row or of our tombstone.
SELECT team_id, distinct_id, person_id, is_deleted, version,
       /* include row_name */ AS name
FROM person_distinct_id2
WHERE version >= -1
  AND /* include keys */
LIMIT {most:UInt64}
