# What the scripts for the virtual machine share.
failed=0
# wants EXPECTED COMMAND...: exactly that answer, white space aside.
wants() {
    local expected=$1 said; shift
    said=$("$@" 2>&1 | tr -s ' \n' '  ' | sed 's/ $//')
    if [ "$said" = "$expected" ]; then echo "ok   $*: $said"; return; fi
    echo "FAIL $*: $said, not $expected"; failed=1
}
# until_ok COMMAND...: within a minute, or as many as LAB_PATIENCE says.
until_ok() {
    local end=$((SECONDS + 60 * ${LAB_PATIENCE:-1}))
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then echo "FAIL never true: $*"; failed=1; return 1; fi
        sleep 0.5
    done
}
# An image `bb` of busybox.
image() {
    mkdir -p /root/bb/bin /root/bb/tmp
    cp /bin/busybox /root/bb/bin
    for name in cat dd echo httpd mknod mount sh sleep true; do ln -sf busybox "/root/bb/bin/$name"; done
    tar -C /root/bb -c . | docker import - bb >/dev/null
}
