-- For the transaction: rows from parallel workers are taken to cost nothing, so the server uses those it has.
SELECT set_config('parallel_tuple_cost', '0', true)
