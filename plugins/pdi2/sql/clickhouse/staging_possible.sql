-- Parts go from one plain table to another whole; partition by partition is not needed by PostHog's schema.
SELECT count()
FROM system.tables
WHERE database = currentDatabase() AND name = 'person_distinct_id2' AND engine = 'ReplacingMergeTree'
  AND partition_key = ''
