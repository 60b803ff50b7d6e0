-- The names of what is below a path in Keeper.
SELECT name
FROM system.zookeeper
WHERE path = {path:String}
