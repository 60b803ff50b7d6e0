ALTER TABLE person_distinct_id2 ATTACH PARTITION tuple() FROM {target:Identifier}
