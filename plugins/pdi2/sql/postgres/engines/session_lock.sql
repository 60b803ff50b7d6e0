-- A lock that nobody else asks for, to see whether it outlives the connection. Only this session has this number.
SELECT pg_advisory_lock(hashtext('pdi2_session'), pg_backend_pid())
