"""What a guest says of its checks: lines that begin with a mark, on a console that others may write to as well.

```
@@guest ok NAME               a check passed
@@guest fail NAME: REASON     …or not; lines with `@@guest | ` may follow: what it saw
@@guest skip NAME: REASON     …or could not be tried
@@guest end                   all checks have been run
```
Pure. Invariant: a guest that does not come to its end has failed, whatever it said before.
"""

from dataclasses import dataclass, field

MARK = "@@guest "


@dataclass(slots=True)
class Report:
    """What has been heard so far."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    ended: bool = False

    def hear(self, line: str) -> str:
        """Take a line of the console; return what a person should read of it, "" for nothing."""
        _, mark, said = line.partition(MARK)
        if not mark:
            return ""
        word, _, rest = said.partition(" ")
        heard = {"ok": self.passed, "fail": self.failed, "skip": self.skipped}.get(word)
        if heard is not None:
            heard.append(rest)
        self.ended = self.ended or word == "end"
        shown = {"ok": "  ok    ", "fail": "  FAIL  ", "skip": "  skip  ", "|": "        "}.get(word)
        return "" if shown is None else shown + rest

    @property
    def good(self) -> bool:
        """Tell whether the guest came to its end, and nothing failed."""
        return self.ended and not self.failed and bool(self.passed)

    def summary(self, name: str) -> str:
        """Return the closing line."""
        failed = len(self.failed) + (not self.ended)
        line = f"{name}: {len(self.passed)} passed, {failed} failed, {len(self.skipped)} skipped"
        return line if self.ended else f"{line} (it did not come to its end)"
