-- Why an entry of the queue could not be carried out when it was last tried, such as the fetch of a part.
SELECT substringUTF8(splitByString(', Stack trace', last_exception)[1], 1, 500)
FROM system.replication_queue
WHERE database = currentDatabase() AND table = {table:String} AND last_exception != ''
ORDER BY last_attempt_time DESC
LIMIT 1
