-- With the columns, indices and constraints of the new table, its key and its settings. It is never replicated.
CREATE TABLE {target:Identifier} AS person_distinct_id2
ENGINE = {engine:Engine}
