"""The faults that the demo ClickHouse server shows on request."""

import re
from dataclasses import dataclass, field

FAULTS = {
    159: "Timeout exceeded: elapsed 60001 ms, maximum: 60000 ms",
    202: "Too many simultaneous queries. Maximum: 100",
    241: "Query memory limit exceeded: would use 1.01 GiB, maximum: 1.00 GiB",
    243: "Cannot reserve 1.00 MiB, not enough space",
    252: "Too many parts (3001). Merges are processing significantly slower than inserts",
}
"""ClickHouse's error texts. For a 241 of the server's own limit, give "(total) memory limit exceeded" as `text`."""

ACTIONS = {
    "refuse": "HTTP 503, as from a proxy that finds no server; the statement does not run",
    "delay": "the statement runs `seconds` later, or as soon as the faults are replaced",
    "cut_before": "the connection closes; the statement does not run",
    "cut_after": "the statement runs to its end, then the connection closes without an answer",
    "error": "ClickHouse's error `code` in the words of `text`; the statement does not run",
    "die": "the server is gone at once, as after kill -9; the statement does not run",
}


@dataclass
class Fault:
    """What happens `times` times to statements that match a regular expression, after the first `skip` of them."""

    match: str
    action: str
    seconds: float = 0
    code: int = 0
    text: str = ""
    times: int = 1
    skip: int = 0
    matched: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        re.compile(self.match)
        if self.action not in ACTIONS:
            raise ValueError(f"unknown action {self.action}: it is one of {', '.join(ACTIONS)}")
        if self.action == "error" and self.code not in FAULTS and not (self.code and self.text):
            raise ValueError(f"an error needs code and text, or one of the codes {sorted(FAULTS)}")
        self.text = self.text or FAULTS.get(self.code, "")

    def fires(self, statement: str) -> bool:
        if not re.search(self.match, statement, re.IGNORECASE | re.DOTALL):
            return False
        self.matched += 1
        fires = self.matched > self.skip and self.fired < self.times
        self.fired += fires
        return fires
