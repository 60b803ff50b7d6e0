CHECK GRANT {privilege:Privilege} ON {table:Identifier}
