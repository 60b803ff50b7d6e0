SELECT has_function_privilege('pg_control_system()', 'EXECUTE')
