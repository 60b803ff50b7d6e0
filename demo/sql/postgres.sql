-- Django defers foreign keys to the commit, and so do these.

CREATE TABLE posthog_team
(
    id   serial PRIMARY KEY,
    name varchar(200) NOT NULL
);

CREATE TABLE posthog_person
(
    id            serial PRIMARY KEY,
    created_at    timestamptz NOT NULL DEFAULT now(),
    properties    jsonb NOT NULL DEFAULT '{}',
    is_identified boolean NOT NULL DEFAULT false,
    uuid          uuid NOT NULL,
    team_id       integer NOT NULL REFERENCES posthog_team DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX posthog_person_team_id ON posthog_person (team_id);
CREATE INDEX posthog_person_uuid ON posthog_person (uuid);

CREATE TABLE posthog_persondistinctid
(
    id          serial PRIMARY KEY,
    distinct_id varchar(400) NOT NULL,
    person_id   integer NOT NULL REFERENCES posthog_person DEFERRABLE INITIALLY DEFERRED,
    team_id     integer NOT NULL REFERENCES posthog_team DEFERRABLE INITIALLY DEFERRED,
    version     bigint,
    CONSTRAINT "unique distinct_id for team" UNIQUE (team_id, distinct_id)
);
CREATE INDEX posthog_persondistinctid_person_id ON posthog_persondistinctid (person_id);

CREATE TABLE posthog_asyncmigration
(
    id                      bigserial PRIMARY KEY,
    name                    varchar(50) NOT NULL UNIQUE,
    description             varchar(400),
    progress                smallint NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
    status                  smallint NOT NULL DEFAULT 0 CHECK (status >= 0),
    current_operation_index smallint NOT NULL DEFAULT 0 CHECK (current_operation_index >= 0),
    current_query_id        varchar(100) NOT NULL DEFAULT '',
    celery_task_id          varchar(100) NOT NULL DEFAULT '',
    started_at              timestamptz,
    finished_at             timestamptz,
    posthog_min_version     varchar(20),
    posthog_max_version     varchar(20)
);

CREATE TABLE posthog_asyncmigrationerror
(
    id                 bigserial PRIMARY KEY,
    created_at         timestamptz NOT NULL DEFAULT now(),
    description        text NOT NULL,
    async_migration_id bigint NOT NULL REFERENCES posthog_asyncmigration DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE posthog_instancesetting
(
    id        serial PRIMARY KEY,
    key       varchar(128) NOT NULL UNIQUE,
    raw_value varchar(1024) NOT NULL
);
INSERT INTO posthog_instancesetting (key, raw_value)
VALUES ('constance:posthog:PERSON_DISTINCT_ID_WRITES', '"old"'),
       ('constance:posthog:PERSON_DISTINCT_ID_READS', '"old"');
