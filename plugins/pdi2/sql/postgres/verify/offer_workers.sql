-- For this transaction, rows from parallel workers cost nothing in a plan, so the server uses the workers that it has.
-- And textsend returns an id as UTF8, as it is stored.
SELECT set_config('parallel_tuple_cost', '0', true), set_config('client_encoding', 'UTF8', true)
