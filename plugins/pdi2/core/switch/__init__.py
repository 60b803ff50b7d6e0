"""What the application notices: the dual write and its proof, the gate, the switch of reads and the way back.

Reads facts from the ledger, and changes the application's switches.
"""
