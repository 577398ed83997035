"""The real logrotate with the file that is shipped, tools/logrotate/adcore."""

import grp
import os
import pwd
import subprocess
from pathlib import Path

from tests.process import ROOT
from tests.services import program

SHIPPED = ROOT / "tools" / "logrotate" / "adcore"


class Logrotate:
    """The shipped file, edited for `log` and `pid_files`."""

    def __init__(self, folder: Path, log: Path, pid_files: str, kept: int = 14, user: str = "") -> None:
        """`kept` is how many old files stay; `user` is the server's, for root alone."""
        own = pwd.getpwuid(os.geteuid()).pw_name
        group = grp.getgrgid(pwd.getpwnam(user or own).pw_gid).gr_name
        as_user = f"runuser -u {user or own} -- " if os.geteuid() == 0 else ""
        text = SHIPPED.read_text()
        for old, new in {
            "rotate 14": f"rotate {kept}",
            "/var/lib/adcore/delivery.log /var/lib/adcore/*/delivery.log": str(log),
            "/run/adcore/*.pid": pid_files,
            "su adcore adcore": f"su {user or own} {group}",
            "runuser -u adcore -- ": as_user,
            "/run/systemd/system": "/nonexistent",  # the services of this host are none of the test's business
        }.items():
            assert old in text
            text = text.replace(old, new)
        folder.mkdir()
        self.conf = folder / "adcore"
        self.conf.write_text(text)
        self.conf.chmod(0o644)
        self.state = folder / "state"

    def rotate(self, *, check: bool = True) -> str:
        """What it said."""
        rotated = subprocess.run(
            [program("logrotate", "logrotate"), "--force", "--verbose", "--state", str(self.state), str(self.conf)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check:
            assert rotated.returncode == 0, rotated.stderr
            assert "error" not in rotated.stderr, rotated.stderr
        return rotated.stderr
