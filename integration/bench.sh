#!/usr/bin/env bash
# Compares ptgate with a bare pair of PT processes on loopback, in interleaved
# rounds, and prints a table. Needs Go only.
#
#   integration/bench.sh [-rounds N] [-pt /path/to/obfs4/program] [-only SYSTEM,…] [-scale]
#   integration/bench.sh -http [-rounds N]
#
# With -http it compares the HTTP front with tinyproxy and squid, where they are
# installed.
#
# Without -pt the bare pair is lyrebird, built from its module.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go build -o "$dir/ptgate" ./cmd/ptgate
go build -o "$dir/bench" ./integration/bench
ulimit -n "$(ulimit -Hn)"
"$dir/bench" -ptgate "$dir/ptgate" -dir "$dir" "$@"
