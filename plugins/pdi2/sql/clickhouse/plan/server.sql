SELECT version(), currentDatabase()
