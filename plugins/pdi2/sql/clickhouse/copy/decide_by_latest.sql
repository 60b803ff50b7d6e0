-- An id's latest link and latest unlink nearly always decide as winners.sql would, without looking at pairs: the link
-- wins if no unlink is later, or if the only unlink is of another person. An id is dead if it has no link, or a single
-- link and a later unlink of the same person.
INSERT INTO {latest:Identifier} (team_id, distinct_id, rows, winner, outcome)
SELECT team_id, distinct_id, links + unlinks, link,
       multiIf(links = 0, 'dead',
               unlinks = 0 OR link > unlink, 'live',
               toUInt128(link) = toUInt128(unlink), if(links = 1, 'dead', 'undecided'),
               unlinks = 1, 'live',
               'undecided')
FROM (
    SELECT team_id, distinct_id,
           countIf(_sign >= 0) AS links, maxIf(event, _sign >= 0) AS link,
           countIf(_sign < 0) AS unlinks, maxIf(event, _sign < 0) AS unlink
    FROM (
        SELECT team_id, distinct_id, _sign,
               bitShiftLeft(toUInt256(/* include moment */), 128) + reinterpretAsUInt128(person_id) AS event
        FROM person_distinct_id
        WHERE /* include slice_range */
          AND /* include id_hash */ IN {complex_set:Identifier}
    )
    GROUP BY team_id, distinct_id
)
