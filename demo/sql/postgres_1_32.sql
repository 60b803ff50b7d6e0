-- What is different in PostHog 1.32, to run after postgres.sql: its settings are in django-constance, so there is no
-- posthog_instancesetting; Django keeps no defaults in the database; and the reason of an error has 400 characters.

DROP TABLE posthog_instancesetting;
ALTER TABLE posthog_asyncmigration
    ALTER progress DROP DEFAULT,
    ALTER status DROP DEFAULT,
    ALTER current_operation_index DROP DEFAULT,
    ALTER current_query_id DROP DEFAULT,
    ALTER celery_task_id DROP DEFAULT;
ALTER TABLE posthog_asyncmigrationerror
    ALTER created_at DROP DEFAULT,
    ALTER description TYPE varchar(400);
