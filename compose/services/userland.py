"""Where a server's programs are and how they are run: this machine's own, or those of a Debian tree, by chroot."""

from __future__ import annotations

import contextlib
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from compose.services.environment import PATH, for_servers

# The mounts are in a namespace that ends with the last process in it: no end of ours, however hard, leaves one behind.
# The data has the same path inside as outside, so no path has to be translated, wherever it is written down.
ENTER = """
root=$1 data=$2 home=$3 owner=$4
shift 4
(umask 022 && mkdir -p "$root$data")
for each in /proc /sys /dev "$data"; do
    mount --rbind "$each" "$root$each"
done
exec chroot $owner "$root" env --chdir="$home" "$@"
"""


@dataclass(frozen=True, slots=True)
class Userland:
    """This machine (no root), or a tree of another release of Debian, which takes root's rights to enter."""

    root: Path | None = None

    @classmethod
    def of(cls, known: dict[str, Any]) -> Self:
        """That of a server in the state file."""
        root = known.get("root")
        return cls(Path(root) if root else None)

    def outside(self, path: str | Path) -> Path:
        """Where we ourselves see a program that is at this path for those who run there."""
        return self.root / Path(path).relative_to("/") if self.root else Path(path)

    def owner(self, *names: str) -> list[int] | None:
        """User and group id of the first of these users that is known there."""
        for name in names:
            if self.root:
                for line in self.outside("/etc/passwd").read_text().splitlines():
                    user, _, uid, gid, *_ = line.split(":")
                    if user == name:
                        return [int(uid), int(gid)]
            else:
                with contextlib.suppress(KeyError):
                    known = pwd.getpwnam(name)
                    return [known.pw_uid, known.pw_gid]
        return None

    def environment(self) -> dict[str, str]:
        """What a program there may know of ours."""
        if self.root:
            return {"PATH": PATH}
        return for_servers()

    def invocation(
        self, command: Sequence[str], home: str, owner: Sequence[int] | None = None
    ) -> tuple[list[str], dict[str, Any]]:
        """How to have Popen run a command there, in its home and as its owner (None: as ourselves).

        Its process id is that of the command itself: nothing stands between us and it.
        """
        if self.root:
            as_owner = f"--userspec={owner[0]}:{owner[1]} --groups=" if owner else ""
            data = str(Path(home).parent)
            enter = ["unshare", "--mount", "sh", "-ec", ENTER, "enter", str(self.root), data, home, as_owner]
            return [*enter, *command], {}
        as_user = {"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}
        return list(command), {"cwd": home, **as_user}

    def forget(self, data: str) -> None:
        """Take back the empty directory that the data was mounted on; only once nothing runs there."""
        if self.root:
            with contextlib.suppress(OSError):
                self.outside(data).rmdir()


HERE = Userland()
