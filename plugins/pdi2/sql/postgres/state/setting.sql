SELECT raw_value::jsonb #>> '{}'
FROM posthog_instancesetting
WHERE key = %(key)s
