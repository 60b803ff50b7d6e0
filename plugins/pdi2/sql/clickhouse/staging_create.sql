CREATE TABLE {target:Identifier} AS person_distinct_id2
