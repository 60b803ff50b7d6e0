-- The last event that affected the approval of the switch, and who approved or rejected it.
SELECT what, detail->>'by' AS "by"
FROM pdi2_migration.event
WHERE what IN ('certified', 'approval_asked', 'switch_approved', 'switch_rejected', 'reads_switched', 'rolled_back')
ORDER BY id DESC
LIMIT 1
