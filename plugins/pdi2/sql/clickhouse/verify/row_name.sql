-- Names a row in full, in a few bytes whatever its id.
hex(sipHash128(team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset, _partition))
