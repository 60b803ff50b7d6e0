INSERT INTO posthog_asyncmigration
    (name, description, progress, status, current_operation_index, current_query_id, celery_task_id)
VALUES (%(name)s, %(description)s, 0, 0, 0, '', '')
ON CONFLICT (name) DO NOTHING
