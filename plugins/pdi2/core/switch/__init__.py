"""What the application notices: the dual write and its proof, the gate, the switch of reads and the way back.

Facts of the ledger come in; the application's switches are what changes.
"""
