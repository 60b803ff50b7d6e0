-- A role, a database or a server may have settings that suit an application but not us: a comparison may take long, and
-- a connection is idle while ClickHouse works. Only what could hold up the application is limited: the wait for a lock,
-- and a transaction that nobody ends. The driver reads times only in ISO style, and Python adds and compares those of one
-- zone as wall clocks show them, so the hour of summer time would count. An id may be text in any script, and lists of bytes
-- travel as text, where a backslash and NULL must mean what they usually do. A limit that the server does not know is left
-- out, because there is none of that kind. A crash of Postgres must lose nothing that we reported as done, so commits are
-- flushed. They wait for a standby only where the role's commits do. Where a policy would hide rows, a statement fails
-- instead: what is hidden would be taken for deleted. A worker whose host dies says no word, and its locks stay for as long
-- as Postgres takes it for alive: two hours without these keepalives.
SELECT set_config(wanted.name, wanted.value, false)
FROM (
    VALUES ('statement_timeout', '0'),
           ('transaction_timeout', '0'),
           ('idle_session_timeout', '0'),
           ('lock_timeout', '10s'),
           ('idle_in_transaction_session_timeout', '10min'),
           ('default_transaction_isolation', 'read committed'),
           ('DateStyle', 'ISO'),
           ('TimeZone', 'UTC'),
           ('client_encoding', 'UTF8'),
           ('standard_conforming_strings', 'on'),
           ('array_nulls', 'on'),
           ('row_security', 'off'),
           ('tcp_keepalives_idle', '60'),
           ('tcp_keepalives_interval', '10'),
           ('tcp_keepalives_count', '3'),
           ('synchronous_commit', 'local')
) AS wanted (name, value)
JOIN pg_settings ON pg_settings.name = wanted.name
WHERE wanted.name <> 'synchronous_commit' OR pg_settings.setting = 'off'
