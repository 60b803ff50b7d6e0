-- All keys in one text, such as `7:6162,7:6364`, because clickhouse-connect reads a statement token by token, and 5,000
-- ids would be as many tokens.
(team_id, distinct_id) IN (
    SELECT toInt64(splitByChar(':', key)[1]), unhex(splitByChar(':', key)[2])
    FROM (SELECT arrayJoin(splitByChar(',', {keys:Literal})) AS key)
)
