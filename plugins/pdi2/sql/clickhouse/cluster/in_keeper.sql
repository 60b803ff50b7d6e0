-- The names of the nodes below a path in Keeper.
SELECT name
FROM system.zookeeper
WHERE path = {path:String}
