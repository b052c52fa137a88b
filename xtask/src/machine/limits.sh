# Limits, statistics, devices, pause and AppArmor, on whichever control groups this machine has booted with.
# The answers are those of the Docker Engine 20.10.24 on the same kernel, `cpu.weight` aside: see `cpu_weight`.
# Emulation makes every command slow, so each asks for as much as it can.
. /host/check.sh
unified=; [ -e /sys/fs/cgroup/cgroup.controllers ] && unified=1
v2() { [ ! $unified ] || wants "$@"; }
v1() { [ $unified ] || wants "$@"; }
run() { docker run --rm "$@"; }
label=/proc/self/attr/current
group='cd /sys/fs/cgroup; cat'

wants "$([ $unified ] && echo 2 || echo 1)" docker info -f '{{.CgroupVersion}}'
# Nobody has loaded the AppArmor profile before the first container.
limits="--memory 100m --memory-swap 150m --memory-reservation 50m --cpus 0.5 --cpu-shares 1024 --cpuset-cpus 1 --cpuset-mems 0 --pids-limit 20"
v2 "104857600 52428800 52428800 50000 100000 100 1 0 20 default 2930 254:0 rbps=1048576 wbps=max riops=max wiops=77 0::/ docker-default (enforce)" \
    run $limits --blkio-weight 300 --device-read-bps /dev/vda:1mb --device-write-iops /dev/vda:77 bb sh -c \
    "$group memory.max memory.swap.max memory.low cpu.max cpu.weight cpuset.cpus cpuset.mems pids.max io.weight io.max /proc/self/cgroup $label"
v1 "104857600 52428800 50000 100000 1024 1 0 20 docker-default (enforce)" run $limits bb sh -c \
    "$group memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max $label"
v2 "WARNING: Your kernel does not support OomKillDisable. OomKillDisable discarded. WARNING: Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded. WARNING: Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded. max" \
    run --memory 100m --memory-swap -1 --oom-kill-disable --memory-swappiness 10 --blkio-weight-device /dev/vda:200 bb cat /sys/fs/cgroup/memory.swap.max

docker run -d --name st --memory 50m --pids-limit 33 bb sleep 1000
wants "st 1 50MiB" sh -c "docker stats --no-stream --format '{{.Name}} {{.PIDs}} {{.MemUsage}}' st | sed 's/ [^ ]* \\// /'"
docker update --memory 80m --memory-swap 100m --cpus 1 --pids-limit 44 --cpu-shares 1024 --cpuset-cpus 0 --blkio-weight 500 st
v2 "83886080 20971520 100000 100000 44 100 0 default 4950 docker-default (enforce)" docker exec st sh -c \
    "$group memory.max memory.swap.max cpu.max pids.max cpu.weight cpuset.cpus io.weight $label"
v1 "83886080 100000 44 1024 0 docker-default (enforce)" docker exec st sh -c \
    "$group memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max cpu/cpu.shares cpuset/cpuset.cpus $label"
docker update --pids-limit -1 st
docker pause st
wants "paused docker-default" docker inspect -f '{{.State.Status}} {{.AppArmorProfile}}' st
wants sleep sh -c "docker top st -o pid,comm | tail -1 | awk '{print \$2}'"
docker unpause st
v2 max docker exec st cat /sys/fs/cgroup/pids.max
v1 max docker exec st cat /sys/fs/cgroup/pids/pids.max
# What was changed holds after a restart, too.
docker restart -t 0 st
v2 "83886080 max default 4950" docker exec st sh -c "$group memory.max pids.max io.weight"
v1 "83886080 max" docker exec st sh -c "$group memory/memory.limit_in_bytes pids/pids.max"
wants unconfined docker exec --privileged st cat $label
docker rm -f st

docker run --name oom --memory 20m --memory-swap 20m bb dd if=/dev/zero of=/dev/null bs=60M count=2
wants "true 137" docker inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' oom
docker rm oom

wants "cat: can't open '/tmp/z': Operation not permitted 1+0 records in 1+0 records out dd: can't open '/dev/mine': Operation not permitted 1+0 records in 1+0 records out" \
    run --device /dev/vda:/dev/mine:r --device-cgroup-rule 'c 1:5 rm' bb sh -c 'mknod /tmp/z b 254 1; cat /tmp/z
    dd if=/dev/mine of=/dev/null bs=512 count=1; dd if=/dev/zero of=/dev/mine bs=512 count=1
    mknod /tmp/y c 1 5; dd if=/tmp/y of=/dev/null bs=1 count=1'
wants "unconfined 1+0 records in 1+0 records out" run --privileged bb sh -c "cat $label; dd if=/dev/vda of=/dev/null bs=512 count=1"
wants unconfined run --security-opt apparmor=unconfined bb cat $label
wants 125 sh -c 'docker run --rm --security-opt apparmor=nosuch bb true 2>/dev/null; echo $?'
# By an OCI runtime's binary.
v2 "104857600 docker-default (enforce)" run --runtime runc --memory 100m bb cat /sys/fs/cgroup/memory.max $label
v1 "104857600 docker-default (enforce)" run --runtime runc --memory 100m bb cat /sys/fs/cgroup/memory/memory.limit_in_bytes $label
# The profile keeps even who may mount from mounting.
wants 255 sh -c 'docker run --rm --cap-add SYS_ADMIN bb mount -t tmpfs x /tmp 2>/dev/null; echo $?'
exit $failed
