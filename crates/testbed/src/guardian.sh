# $1: a testbed directory. Waits for the end of standard input, which comes when the owner has ended, however it
# ended; then kills what the owner left running and removes the directory.
trap '' INT TERM HUP
cat >/dev/null
dir=$1

kill_tree() {
    kill -STOP "$1" 2>/dev/null
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        kill_tree "$child"
    done
    kill -KILL "$1" 2>/dev/null
}

start_ticks() {
    stat=$(cat /proc/"$1"/stat 2>/dev/null) || return
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    shift 19
    echo "$1"
}

for file in "$dir"/pids/*; do
    [ -f "$file" ] || continue
    pid=${file##*/}
    # The id may belong to another process by now: the start time tells.
    if [ "$(cat "$file")" = "$(start_ticks "$pid")" ]; then
        kill_tree "$pid"
    fi
done

# A killed PostgreSQL leaves a System V segment behind; its id is in the seventh line.
if [ -f "$dir"/data/postmaster.pid ]; then
    segment=$(sed -n '7s/^ *[0-9]* *//p' "$dir"/data/postmaster.pid)
    [ -n "$segment" ] && ipcrm -m "$segment" 2>/dev/null
fi

# A server that dies may still write for a moment.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$dir" 2>/dev/null && break
    sleep 0.1
done
