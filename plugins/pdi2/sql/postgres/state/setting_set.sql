INSERT INTO posthog_instancesetting (key, raw_value)
VALUES (%(key)s, to_jsonb(%(value)s::text)::text)
ON CONFLICT (key) DO UPDATE
SET raw_value = excluded.raw_value
