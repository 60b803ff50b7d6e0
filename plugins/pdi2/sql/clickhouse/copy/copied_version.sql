-- The version of a copied row. It is negative and grows with the time of the event: any row of the application (0 and
-- up) and any correction (-1) beats it, and of two copies of an id the later event wins.
toInt64(_timestamp) - 4294967297
