SELECT raw_value::jsonb #>> '{}'
FROM posthog_instancesetting
WHERE key::text = %(key)s
