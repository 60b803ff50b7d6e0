-- A role, a database or a server may carry settings that suit an application. A comparison takes as long as it takes, and
-- a connection rests while ClickHouse works. What could hold up the application is short: the wait for a lock, and a
-- transaction that nobody ends. The driver reads times in ISO style alone, and an id may be text of any script. A server
-- that does not know a limit yet has none of that kind.
SELECT set_config(wanted.name, wanted.value, false)
FROM (
    VALUES ('statement_timeout', '0'),
           ('transaction_timeout', '0'),
           ('idle_session_timeout', '0'),
           ('lock_timeout', '10s'),
           ('idle_in_transaction_session_timeout', '10min'),
           ('default_transaction_isolation', 'read committed'),
           ('DateStyle', 'ISO'),
           ('client_encoding', 'UTF8')
) AS wanted (name, value)
JOIN pg_settings ON pg_settings.name = wanted.name
