-- How much of the teams' work is done, in rows: copying a row costs copy_share of what it costs to copy and verify it.
-- For a team that is still being copied, an id counts as a row, which is nearly right. Each team counts as one more row,
-- so that a team without rows is work too.
sum(CASE status WHEN 'verified' THEN rows_source + 1
                WHEN 'copied' THEN %(copy_share)s * (rows_source + 1)
                ELSE %(copy_share)s * least(rows_copied, rows_source) END)
