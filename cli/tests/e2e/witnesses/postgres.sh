#!/usr/bin/env bash
# PostgreSQL's own bank, with checksums on every page of it.
#
# usage: postgres.sh DIRECTORY SECONDS    as the user postgres
set -euo pipefail
dir=$1/postgres seconds=$2
PATH=$(echo /usr/lib/postgresql/*/bin | tr ' ' ':'):$PATH

stop() { pg_ctl --pgdata="$dir" --mode=fast --silent stop; }
ask() { psql --host="$dir" --no-psqlrc --tuples-only --no-align --command="$1" postgres; }

initdb --pgdata="$dir" --data-checksums --auth=trust >/dev/null
pg_ctl --pgdata="$dir" --wait --silent --log="$dir/log" \
    --options="-c listen_addresses= -c unix_socket_directories=$dir -c shared_buffers=16MB" start
trap stop EXIT
pgbench --host="$dir" --initialize --scale=10 --quiet postgres >/dev/null 2>&1
pgbench --host="$dir" --client=4 --time="$seconds" postgres
[[ $(ask "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
    AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)") == t ]]
trap - EXIT
stop
pg_checksums --pgdata="$dir" --check
