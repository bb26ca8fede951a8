// SPDX-License-Identifier: GPL-2.0
/* Makes the guest's kernel complain in a chosen way: insmod provoke.ko what=warn */

#include <linux/module.h>
#include <linux/bug.h>
#include <linux/sched.h>
#include <linux/delay.h>

static char *what = "";
module_param(what, charp, 0);

static int __init provoke_init(void)
{
	if (!strcmp(what, "warn")) {
		WARN(1, "provoked");
	} else if (!strcmp(what, "oops")) {
		*(volatile int *)8 = 0;
	} else if (!strcmp(what, "bug")) {
		BUG();
	} else if (!strcmp(what, "atomic")) {
		preempt_disable();
		schedule();
		preempt_enable();
	} else if (!strcmp(what, "hang")) {
		/* in state D for ever */
		for (;;) {
			set_current_state(TASK_UNINTERRUPTIBLE);
			schedule();
		}
	} else if (!strcmp(what, "lockup")) {
		preempt_disable();
		for (;;)
			cpu_relax();
	} else {
		return -EINVAL;
	}
	return 0;
}
module_init(provoke_init);

static void __exit provoke_exit(void) { }
module_exit(provoke_exit);

MODULE_DESCRIPTION("provokes complaints of the kernel");
MODULE_LICENSE("GPL");
