-- Whether this is a standby, whether transactions may only read, and which subscription fills the ids: a logical replica
-- takes writes, but the application does not see them. Postgres 11 shows nobody a subscription's oid but in the view.
SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean,
       (
           SELECT quote_ident(pg_subscription.subname)
           FROM pg_subscription_rel
           JOIN pg_stat_subscription ON pg_stat_subscription.subid = pg_subscription_rel.srsubid
           JOIN pg_subscription ON pg_subscription.subname = pg_stat_subscription.subname
           JOIN pg_database ON pg_database.oid = pg_subscription.subdbid
           WHERE pg_subscription_rel.srrelid = to_regclass('posthog_persondistinctid')
             AND pg_database.datname = current_database()
             AND pg_subscription.subenabled
           LIMIT 1
       )
