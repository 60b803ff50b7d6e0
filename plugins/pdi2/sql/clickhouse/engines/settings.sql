-- What the user's profile says of every setting: its value, and what it may be.
SELECT name, value, min, max, readonly
FROM system.settings
