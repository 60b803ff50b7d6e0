SELECT current_setting('server_version_num')::int,
       current_setting('server_encoding'),
       to_regnamespace('pdi2_migration') IS NOT NULL OR has_database_privilege(current_database(), 'CREATE')
