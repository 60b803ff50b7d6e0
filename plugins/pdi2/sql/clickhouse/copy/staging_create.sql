-- Has the columns, indices, constraints, key and settings of the new table, but is never replicated.
CREATE TABLE {target:Identifier} AS person_distinct_id2
ENGINE = {engine:Engine}
