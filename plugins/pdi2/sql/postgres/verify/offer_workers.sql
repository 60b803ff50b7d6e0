-- For the transaction: rows from parallel workers are taken to cost nothing, so the server uses those it has. And textsend
-- gives an id as UTF8, as it is stored.
SELECT set_config('parallel_tuple_cost', '0', true), set_config('client_encoding', 'UTF8', true)
