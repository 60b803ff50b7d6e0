cityHash64(team_id, distinct_id, (_timestamp, _offset, -_sign, person_id))
