-- When the server started, in seconds since the epoch.
SELECT toUnixTimestamp(now()) - uptime()
