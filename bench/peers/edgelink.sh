#!/bin/bash
# EdgeLink, direct by UDP; the controller on R introduces the nodes and carries their first packets.
PEER=edgelink EDGELINK_P2P=true; . "$(dirname "$0")/edgelink-relay.sh"
