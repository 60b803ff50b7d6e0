SELECT sum(rows), count()
FROM system.parts
WHERE active AND database = currentDatabase() AND table = {table:String}
