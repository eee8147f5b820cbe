# The first process of a node: when it ends, all others end, and all mounts are undone.
# $1 is the node's folder, which is removed with the cluster.
set -eu

# Read before /proc is the node's own: this process's id outside of the namespace.
read -r pid _ </proc/self/stat
mount -t proc proc /proc

# What the kubelet, containerd and CNI store below these by default goes to the folder, or to memory.
mount -t tmpfs tmpfs /run
mount --bind "$1/lib" /var/lib
mount --bind "$1/log" /var/log

# The node reaches nothing beyond this machine, so looking up a name should fail at once.
if [ -e /etc/resolv.conf ]; then
    : >"$1/resolv.conf"
    mount --bind "$1/resolv.conf" /etc/resolv.conf
fi

# The kubelet would set these for the whole machine. It gets copies to write to.
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    if [ -e "/proc/sys/$name" ]; then
        copy="$1/sysctl/$(echo "$name" | tr / _)"
        cat "/proc/sys/$name" >"$copy"
        mount --bind "$copy" "/proc/sys/$name"
    fi
done

# These belong to the node's own network.
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up

echo "$pid" >"$1/pid.new"
mv "$1/pid.new" "$1/pid"
trap 'exit 0' TERM
sleep infinity &
# Reaps orphans too.
wait
