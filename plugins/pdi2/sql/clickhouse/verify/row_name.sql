-- Names a row in full, in a few bytes however long its id is.
hex(sipHash128(team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset, _partition))
