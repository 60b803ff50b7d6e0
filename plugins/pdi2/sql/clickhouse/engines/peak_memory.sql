SELECT max(peak_memory_usage)
FROM system.processes
WHERE Settings['log_comment'] = {log_comment:String}
