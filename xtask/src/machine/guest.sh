#!/bin/bash
# Runs in the virtual machine, started by its systemd: installs the package and tries what /host/steps names.
export LAB_PATIENCE=10 HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin DOCKER_HOST=unix:///run/skep.sock
cd /root
cp -r /host/bin /opt/bin
modprobe -a overlay vxlan br_netfilter ip_vs

# step NAME COMMAND...: what it says and how it ends, for the machine outside.
step() {
    local name=$1; shift
    echo "== $name"
    "$@" >"/host/out/$name.log" 2>&1
    local status=$?
    echo "$status" >"/host/out/$name.status"
    echo "== $name: $status"
}

for word in $(cat /host/steps); do
    case $word in
        units | limits | mixed) step "$word" bash "/host/$word.sh" ;;
        *) step "${word%::}" timeout "$(cat /host/limit)" /opt/bin/deps/e2e --test-threads 1 "$word" ;;
    esac
done
