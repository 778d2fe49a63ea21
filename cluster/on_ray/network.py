"""How workers on different machines find each other."""

from __future__ import annotations

import os


def use_the_nodes_interface() -> None:
    """Let gloo use the network interface by which Ray knows this node; runs in every worker process as it starts.

    Left alone gloo takes the address that the machine's own name resolves to. On Debian, in many containers and
    wherever else that is a loopback address, workers of different machines then never meet.
    """
    import psutil
    import ray.util

    own = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
