SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory'
      AND pid = %(session)s
      AND classid = hashtext('pdi2_session')::oid
      AND objid = %(session)s::int::oid
)
