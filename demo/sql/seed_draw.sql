-- Everything about an id follows from its number and the seed.
INSERT INTO seed_id
WITH
    (SELECT arrayFlatten(groupArray(arrayWithConstant(share, kind))) FROM seed_history) AS common,
    (
        SELECT groupArray(kind) FROM seed_history
        WHERE share = 0 AND (kind != 'reused' OR {reused_ids:Bool})
    ) AS rare,
    (SELECT max(end) FROM seed_team) AS ids,
    greatest(1, intDiv(ids, {rare_ids:UInt64})) AS stride,
    choice -> cityHash64({seed:UInt64}, n, choice) AS draw,
    person -> reinterpretAsUUID(MD5(concat(toString({seed:UInt64}), ' ', toString(person)))) AS uuid,
    concat('id', toString(n)) AS id,
    -- These two are about the new table, so they happen while it is written.
    if(kind IN ('tombstone ties', 'reused'), {new_begins:UInt32}, {old_begins:UInt32}) AS earliest,
    earliest + draw('first time') % ({end:UInt32} - 2 - earliest) AS time1,
    time1 + 1 + draw('second time') % ({end:UInt32} - 1 - time1) AS time2,
    time2 + 1 + draw('third time') % ({end:UInt32} - time2) AS time3
SELECT
    n,
    team_id,
    if(
        n % stride = 0,
        rare[1 + intDiv(n, stride) % length(rare)],
        common[1 + draw('kind') % length(common)]
    ) AS kind,
    multiIf(
        n = first AND team_id % 2 = 0, '',
        draw('odd') % 100 = 0, [
            concat('it''s ', id), concat('"', id, '"'), concat('back\\slash\\', id), concat('\\N', id),
            concat('line\nbreak\r\n\t', id), concat('  ', id, '  '), concat('%', id, '_{}[];--'),
            concat('naïve 人 🦔 ', id), leftPad(id, 400, 'x'), leftPadUTF8(id, 400, '長')
        ][1 + draw('which') % 10],
        draw('e-mail') % 10 < 3, concat('user', toString(n), '@example.com'),
        hex(MD5(toString(draw('anonymous'))))
    ) AS distinct_id,
    -- A fifth of the ids share their first person with the id before; later ones are those of the ids after.
    [
        if(draw('shared') % 5 = 0 AND n > first, n - 1, n),
        if(n + 1 < end, n + 1, ids + n),
        if(n + 2 < end, n + 2, ids + ids + n)
    ] AS person_numbers,
    arrayMap(uuid, person_numbers) AS persons,
    [time1, time2, time3] AS times
FROM (SELECT team_id, first, end, arrayJoin(range(first, end)) AS n FROM seed_team)
