-- What the user's profile says about every setting: its value, and the values that it may have.
SELECT name, value, min, max, readonly
FROM system.settings
