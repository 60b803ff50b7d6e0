-- The latest event of a pair decides whether it is live, an unlink wins a tie; of the live pairs of an id the
-- latest wins. The version is negative and grows with the event's time, so any row of the application (0 and
-- up) and any correction (-1) beats it, and of two copies of an id the later event wins.
INSERT INTO person_distinct_id2
    (team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset, _partition)
SELECT team_id, distinct_id, winner.3, 0, toInt64(toUnixTimestamp(winner.1)) - 4294967297, winner.1, winner.2, 0
FROM (
    SELECT team_id, distinct_id, max((last.1, last.2, person_id)) AS winner
    FROM (
        SELECT team_id, distinct_id, person_id, max((_timestamp, _offset, -_sign)) AS last
        FROM person_distinct_id
        WHERE team_id = {team_id:Int64}
          AND distinct_id >= unhex({lower:String})
          AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
        GROUP BY team_id, distinct_id, person_id
        HAVING last.3 = -1
    )
    GROUP BY team_id, distinct_id
)
