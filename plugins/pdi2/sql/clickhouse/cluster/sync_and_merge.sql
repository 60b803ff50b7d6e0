SYSTEM SYNC REPLICA {table:Identifier}
