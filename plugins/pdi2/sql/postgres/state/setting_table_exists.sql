SELECT to_regclass('posthog_instancesetting') IS NOT NULL
