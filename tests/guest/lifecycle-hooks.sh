#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# See tests/cases/lifecycle-hooks.sh. /dev/vda.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lifecycle-lib.sh"

make_fs ext4 /dev/vda
sync

# ---- Tracers ----

load
echo "$hooked" >$tracing/set_ftrace_filter || not_ok "the function tracer's filter"
echo function >$tracing/current_tracer
activate /dev/vda
is "traced: all three are redirected" 3 "$(ours)"
small traced /dev/vda
for name in $hooked; do atleast "traced: $name is in the trace" 1 "$(grep -c "$name <-" $tracing/trace)"; done
echo function_graph >$tracing/current_tracer || not_ok "the other function tracer"
sync /dev/vda
echo nop >$tracing/current_tracer
echo >$tracing/set_ftrace_filter
for name in $hooked; do echo "p:${name}_in $name" && echo "r:${name}_out $name"; done >$tracing/kprobe_events || not_ok "probes"
echo 1 >$tracing/events/kprobes/enable
small probed /dev/vda
for name in $hooked; do atleast "probed: $name" 1 "$(grep -c "${name}_in:" $tracing/trace)"; done
deactivate /dev/vda
is "probed: registered no more, redirected no more" 0 "$(ours)"
activate /dev/vda
small probed /dev/vda
echo 0 >$tracing/events/kprobes/enable
echo >$tracing/kprobe_events
deactivate /dev/vda

# ---- Somebody else redirects one of them ----

for name in $hooked; do
	insmod /host/provoke.ko what=take function="$name" || not_ok "taking $name"
	dmesg -c >/dev/null
	try activate /dev/vda
	is "$name is taken: activate fails" 1 $code
	atleast "$name is taken: it says why" 1 "$(grep -ciE 'busy|live patch|tracer' <<<"$out")"
	is "$name is taken: so does the log" 1 "$(dmesg | grep -c "bdsnap: $name cannot be hooked")"
	is "$name is taken: nothing is registered" 0 "$(status 'devices.#')"
	is "$name is taken: only that one is redirected" 1 "$(ours)"
	mount /dev/vda /mnt || not_ok "$name is taken: a mount"
	umount /mnt
	is "$name is taken: the system call says EBUSY" EBUSY "$(bdsnap-testtool call 174 s:/dev/vda "s:$(cat "$password")")"
	rmmod provoke
done
activate /dev/vda
for name in $hooked; do
	insmod /host/provoke.ko what=take function="$name" 2>/dev/null && not_ok "$name can be taken from the module"
done
small taken /dev/vda
deactivate /dev/vda
rmmod bdsnap
insmod /host/provoke.ko what=take function=__x64_sys_ni_syscall || not_ok "taking the system calls"
dmesg -c >/dev/null
load
is "the system calls are taken: it is said" "false 1" "$(status module.syscalls) $(dmesg | grep -c 'no system calls')"
try activate /dev/vda
is "the system calls are taken: the ioctl serves" 0 $code
rmmod provoke
complete
