-- By team: rows of complex ids, how many of the ids copy_decided.sql copies, and how many are left for the rule.
SELECT team_id, sum(rows), countIf(outcome = 'live'), countIf(outcome = 'undecided')
FROM {latest:Identifier}
GROUP BY team_id
