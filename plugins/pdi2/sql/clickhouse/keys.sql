(team_id, distinct_id) IN (
    SELECT toInt64(key.1), unhex(key.2)
    FROM (SELECT arrayJoin(arrayZip({team_ids:Literal}, {distinct_ids:Literal})) AS key)
)
