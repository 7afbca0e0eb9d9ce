"""The number of this rank and the address of rank 0, read from the environment that a launcher sets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from minillm.errors import InputError

TIMEOUT = 300.0  # seconds that ranks wait for each other, unless MINILLM_TIMEOUT says otherwise
NO_TOKEN = (
    "rendezvous: MINILLM_TOKEN is not set, by which the ranks of a job know each other; run `export "
    "MINILLM_TOKEN=$(openssl rand -hex 16)` once, and give it to all ranks"
)


@dataclass(frozen=True)
class Place:
    """Which rank this process is, of how many, and where rank 0 is found."""

    rank: int
    size: int
    local_rank: int = 0
    """Number of this rank on its machine: which GPU is its own."""
    address: str = "127.0.0.1"
    port: int = 0
    token: str = field(default="", repr=False)
    """A secret of the ranks of this job."""
    timeout: float = TIMEOUT
    """Seconds that ranks wait for each other."""
    listen: str = ""
    """Where rank 0 listens, if not at `address`; there are networks in which it has another address for itself."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Place:
        """The place that the launcher of this process gave it.

        That is RANK, WORLD_SIZE, LOCAL_RANK (0 if absent), MASTER_ADDR and MASTER_PORT, as torchrun, Kubernetes
        training operators, Ray and `minillm train --nproc` set them, or Slurm's SLURM_PROCID, SLURM_NTASKS,
        SLURM_LOCALID, the first host of its list of nodes, and a port made of SLURM_JOB_ID; and always MINILLM_TOKEN.
        MINILLM_TIMEOUT and MINILLM_LISTEN are optional.

        Raises: InputError that names what is missing or wrong.
        """
        found = dict(environment)
        if "RANK" not in found and "WORLD_SIZE" not in found:
            found.update(_from_slurm(found))
        needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if not found.get(name)]:
            raise InputError(
                f"rendezvous: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; start with "
                "`minillm train --nproc N`, or with a launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR "
                "and MASTER_PORT"
            )
        size = _number(found, "WORLD_SIZE", 1, 1 << 20)
        rank = _number(found, "RANK", 0, size - 1)
        port = _number(found, "MASTER_PORT", 1, 65535)
        if found.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself listens at MASTER_PORT
            port = port + 1 if port < 65535 else port - 1
        if size > 1 and not found.get("MINILLM_TOKEN"):
            raise InputError(NO_TOKEN)
        local_rank = _number({"LOCAL_RANK": "0", **found}, "LOCAL_RANK", 0, size - 1)
        return cls(
            rank,
            size,
            local_rank,
            found["MASTER_ADDR"],
            port,
            found.get("MINILLM_TOKEN", ""),
            _seconds(found),
            found.get("MINILLM_LISTEN", ""),
        )


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """Number of ranks that a launcher has started, this process among them; 1 without a launcher."""
    name = "WORLD_SIZE" if "WORLD_SIZE" in environment or "SLURM_PROCID" not in environment else "SLURM_NTASKS"
    return _number(environment, name, 1, 1 << 20) if environment.get(name) else 1


def _from_slurm(found: Mapping[str, str]) -> dict[str, str]:
    """Slurm's variables under the names that the other launchers use; what the others set stays."""
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    given = {name: found[slurm] for name, slurm in names.items() if slurm in found and name not in found}
    nodes = found.get("SLURM_STEP_NODELIST") or found.get("SLURM_JOB_NODELIST")
    address = first_host(nodes) if nodes else found.get("SLURM_LAUNCH_NODE_IPADDR")
    if address and "MASTER_ADDR" not in found:
        given["MASTER_ADDR"] = address
    if found.get("SLURM_JOB_ID", "").isdigit() and "MASTER_PORT" not in found:
        given["MASTER_PORT"] = str(20000 + int(found["SLURM_JOB_ID"]) % 10000)
    return given


def first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts: `gpu[007-009,12],cpu1` begins with gpu007."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _number(found: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = found[name].strip()
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise InputError(f"rendezvous: {name} is {text!r}; set it to a number from {low} to {high}")
    return int(text)


def _seconds(found: Mapping[str, str]) -> float:
    text = found.get("MINILLM_TIMEOUT", str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise InputError(f"rendezvous: MINILLM_TIMEOUT is {text!r}; set it to a number of seconds above 0")
    return seconds
