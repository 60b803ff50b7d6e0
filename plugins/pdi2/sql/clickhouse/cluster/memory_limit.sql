SELECT toInt64OrZero(toString(max(value)))
FROM system.server_settings
WHERE name = 'max_server_memory_usage'
