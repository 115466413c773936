"""An ARM64 machine in a folder: emulator, C library, Python, numpy and onnxruntime, not installed.

The emulator that Debian 12 installs crashes on onnxruntime's ARM code; that of its backports does
not. Packages are taken from the mirror that this machine uses, with a package index of their own.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

_SUITE = "bookworm"  # its Python is 3.11, for which there are wheels
_EMULATOR = f"qemu-user/{_SUITE}-backports"
_PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6",
    "libgomp1", "libgcc-s1", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3",
)  # fmt: skip
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_WHEELS = ("numpy", "onnxruntime")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


def command(folder: Path, cpu: str = "max") -> list[str]:
    """What runs Python on ARM64; the folder is filled on first use.

    Args:
        folder: where everything lies.
        cpu: a CPU that the emulator knows.
    """
    host, root, site = (folder / name for name in ("host", "root", "site"))
    if not (folder / "complete").exists():
        _unpack(folder, host, root)
        _wheels(folder, site)
        (folder / "complete").touch()
    emulator = str(host / "usr/bin/qemu-aarch64")
    python = str(root / "usr/bin/python3.11")
    return [emulator, "-cpu", cpu, "-L", str(root), "-E", f"PYTHONPATH={site}", python]


def _unpack(folder: Path, host: Path, root: Path) -> None:
    """Debian's packages, the emulator's own and those of the ARM machine."""
    packages = folder / "packages"
    for path in (packages, *(folder / "apt" / p for p in _STATE)):
        path.mkdir(parents=True, exist_ok=True)
    site = _run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages",
                "Origin: Debian").split()[0]  # fmt: skip
    lines = [f"deb [signed-by={_KEYS}] {site} {_SUITE}{more} main\n" for more in ("", "-backports")]
    (folder / "apt/sources.list").write_text("".join(lines), encoding="utf-8")
    apt = folder / "apt"
    (apt / "status").touch()  # nothing is installed; some versions of apt do not read /dev/null
    options = {
        "Dir::State": apt / "state", "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceList": apt / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::status": apt / "status", "APT::Sandbox::User": "root",
        "APT::Architectures": "amd64,arm64",
    }  # fmt: skip
    given = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    _run("apt-get", *given, "update")
    wanted = [_EMULATOR, *(f"{name}:arm64" for name in _PACKAGES)]
    _run("apt-get", *given, "download", *wanted, cwd=packages)
    for package in packages.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(root if "arm64" in package.name else host))


_STATE = ("state/lists/partial", "cache/archives/partial")


def _wheels(folder: Path, site: Path) -> None:
    """numpy and onnxruntime of the versions that are installed here."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
    kinds = [f"--platform={p}" for p in _PLATFORMS]
    names = [f"{name}=={version(name)}" for name in _WHEELS]
    _run(*pip, "--no-deps", "--only-binary=:all:", *kinds, "--python-version=3.11",
         "--implementation=cp", f"--dest={folder / 'wheels'}", *names)  # fmt: skip
    for wheel in (folder / "wheels").glob("*.whl"):
        _run(sys.executable, "-m", "zipfile", "-e", str(wheel), str(site))


def _run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command.

    Raises:
        SystemExit: it failed; its own message is shown.
    """
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ... failed:\n{done.stderr or done.stdout}")
    return done.stdout
