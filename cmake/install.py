"""Installs requirements into the environment of the Python that runs it, as `pip install` does, and much faster.

uv does it, with the settings that pip has on this machine (indexes, certificates, constraints). Where uv cannot be had,
or gives up, pip does it, and what pip says counts.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping

PIP = [sys.executable, "-m", "pip"]
UV = [sys.executable, "-m", "uv", "pip"]

# pip's settings by uv's names.
VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "no-index": "UV_NO_INDEX",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
SETTING = re.compile(r"(?P<section>\S+)\.(?P<name>[\w-]+)=(?P<value>.+)")
# With pip the settings for `install` count more than the global ones, and the environment more than both.
RANK = {"global": 0, "install": 1, ":env:": 2}


def uv_environment(settings: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which uv has the settings that `pip config list` printed; uv's own variables count more.

    pip takes the best version of all indexes; uv would stop at the first index that has the name.
    """
    told = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    lines = [line for line in map(SETTING.fullmatch, settings.splitlines()) if line and line["section"] in RANK]
    for line in sorted(lines, key=lambda line: RANK[line["section"]]):
        if variable := VARIABLES.get(line["name"]):
            values = str(ast.literal_eval(line["value"])).split()
            told[variable] = ("," if variable == "UV_FIND_LINKS" else " ").join(values)
    return {**told, **environment}


def main(arguments: list[str]) -> int:
    """`pip install` with these arguments; returns its exit status."""
    quiet = ["-q"] if "-q" in arguments else []
    if subprocess.run([*UV, "--help"], capture_output=True).returncode:
        subprocess.run([*PIP, "install", *quiet, "uv>=0.5"], capture_output=True)
    settings = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    with_uv = [*UV, "install", "--python", sys.executable, *arguments]
    if subprocess.run(with_uv, env=uv_environment(settings, os.environ)).returncode == 0:
        return 0
    print("uv failed, see above: now pip does it", file=sys.stderr)
    return subprocess.run([*PIP, "install", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
