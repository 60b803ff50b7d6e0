-- What can happen to a distinct_id, step by step. A step names a person (1 to 3) and a time (1 < 2 < 3).
--   share    out of 10,000 ids; 0: rare, a few ids of each whatever the size
--   old      rows of the old table: (person, _sign, time)
--   new      rows of the new table, only from the time of the dual write: (person, is_deleted, version, time)
--   owner    the person in Postgres, 0 for none
--   version  the version in Postgres
CREATE TABLE seed_history ENGINE = Memory AS
SELECT *
FROM values(
    'kind String, share UInt16,
     old Array(Tuple(person UInt8, sign Int8, time UInt8)),
     new Array(Tuple(person UInt8, is_deleted UInt8, version UInt8, time UInt8)),
     owner UInt8, version UInt8',

    ('created',     9700, [(1, 1, 1)],
                          [(1, 0, 0, 1)], 1, 0),
    ('redelivered',   20, [(1, 1, 1), (1, 1, 1)],
                          [(1, 0, 0, 1), (1, 0, 0, 1)], 1, 0),
    ('identified',   150, [(1, 1, 1), (1, -1, 2), (2, 1, 2)],
                          [(1, 0, 0, 1), (2, 0, 1, 2)], 2, 1),
    ('merged',        40, [(1, 1, 1), (1, -1, 2), (2, 1, 2), (2, -1, 3), (3, 1, 3)],
                          [(1, 0, 0, 1), (2, 0, 1, 2), (3, 0, 2, 3)], 3, 2),
    ('blinked',       20, [(1, 1, 1), (1, -1, 2), (1, 1, 2)],
                          [(1, 0, 0, 1), (1, 0, 1, 2)], 1, 1),
    ('relinked',      20, [(1, 1, 1), (1, -1, 2), (1, 1, 3)],
                          [(1, 0, 0, 1), (1, 0, 1, 3)], 1, 1),
    ('returned',      10, [(1, 1, 1), (1, -1, 2), (2, 1, 2), (2, -1, 3), (1, 1, 3)],
                          [(1, 0, 0, 1), (2, 0, 1, 2), (1, 0, 2, 3)], 1, 2),
    ('deleted',       20, [(1, 1, 1), (1, -1, 2)],
                          [(1, 0, 0, 1), (1, 1, 100, 2)], 0, 0),
    -- Early releases deleted with a tombstone of version 0.
    ('deleted early', 10, [(1, 1, 1), (1, -1, 2)],
                          [(1, 1, 0, 2)], 0, 0),
    -- Not in the new table, where the tombstone would hide the second link for ever: see 'reused'.
    ('recreated',     10, [(1, 1, 1), (1, -1, 2), (2, 1, 3)],
                          [], 2, 0),

    -- From here on the old table has lost its evidence, and only Postgres knows.
    -- The link came twice, a merge took it for two, and the unlink undid only one.
    ('unlink eaten',   0, [(1, 1, 1), (1, 1, 1), (1, -1, 2)],
                          [(1, 0, 0, 1)], 0, 0),
    ('never arrived',  0, [],
                          [], 1, 0),
    ('unlink lost',    0, [(1, 1, 1)],
                          [(1, 0, 0, 1)], 0, 0),
    ('re-link lost',   0, [(1, 1, 1)],
                          [(1, 0, 0, 1)], 2, 1),
    ('link lost',      0, [(1, 1, 1), (1, -1, 2)],
                          [(1, 0, 0, 1)], 2, 1),
    -- The second writer's clock was behind: it unlinked before the link.
    ('clock behind',   0, [(1, 1, 2), (1, -1, 1), (2, 1, 1)],
                          [(1, 0, 0, 2), (2, 0, 1, 1)], 2, 1),
    -- A copy of version 0 would tie with the tombstone.
    ('tombstone ties', 0, [(1, 1, 1)],
                          [(1, 1, 0, 3)], 0, 0),
    -- The new table holds a version above that of Postgres, which began again at 0.
    ('reused',         0, [(1, 1, 1), (1, -1, 2), (2, 1, 3)],
                          [(1, 1, 100, 2), (2, 0, 0, 3)], 2, 0)
)
