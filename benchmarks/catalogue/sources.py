"""The packages of the emoji catalogue: pinned, fetched with npm, checked by SHA-512."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Style:
    """An art style."""

    name: str  # value of the column ``style``
    package: str  # npm package of the pictures
    names_of: str  # style whose ``chars.json`` maps characters to pictures; of two styles of one maker only one has the file


STYLES = (
    Style("noto", "@iconify-json/noto", "noto"),
    Style("noto-v1", "@iconify-json/noto-v1", "noto"),
    Style("fluent-flat", "@iconify-json/fluent-emoji-flat", "fluent-flat"),
    Style("fluent", "@iconify-json/fluent-emoji", "fluent-flat"),
    Style("twemoji", "@iconify-json/twemoji", "twemoji"),
)

EMOJIBASE = "emojibase-data"

PINNED = {
    "@iconify-json/noto": ("1.2.9", "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="),
    "@iconify-json/noto-v1": (
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "@iconify-json/fluent-emoji": (
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    "@iconify-json/twemoji": (
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    EMOJIBASE: ("17.0.0", "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="),
}
"""Version and SHA-512 (base64) of each package's tarball."""


class Package:
    """Files of a fetched npm package."""

    def __init__(self, name: str, folder: Path) -> None:
        version, expected = PINNED[name]
        file = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
        if found != expected:
            raise SystemExit(f"{file} has SHA-512 {found}, not {expected}. Delete it and fetch it again.")
        self._file = file

    def json(self, name: str) -> Any:
        """Return a JSON file of the package."""
        with tarfile.open(self._file) as tar:
            member = tar.extractfile(f"package/{name}")
            if member is None:
                raise SystemExit(f"{self._file} has no package/{name}. Delete it and fetch it again.")
            return json.load(member)
