-- Rows of complex ids, how many of the ids copy_decided.sql copies, and how many are left for the rule.
SELECT sum(rows), countIf(outcome = 'live'), countIf(outcome = 'undecided')
FROM {latest:Identifier}
