# Removes the control groups of a node. The kernel does all the rest when a node's first process ends, but
# these stay. $1 is their name. They can be removed once no process is in them.
for round in $(seq 50); do
    left=no
    for root in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
        if [ -d "$root" ]; then
            left=yes
            find "$root" -depth -type d -exec rmdir {} + 2>/dev/null || true
        fi
    done
    [ "$left" = no ] && exit 0
    sleep 0.1
done
exit 1
