// SPDX-License-Identifier: GPL-2.0
/*
 * Makes the guest's kernel complain in a chosen way: insmod provoke.ko what=warn
 * Or has a function that others may want to redirect: what=take function=NAME
 */

#include <linux/module.h>
#include <linux/bug.h>
#include <linux/sched.h>
#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>

static char *what = "";
module_param(what, charp, 0);
static char *function = "";
module_param(function, charp, 0);

/* Like a live patch that changes nothing. */
static void notrace on_taken(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
			     struct ftrace_regs *fregs)
{
}

static struct ftrace_ops taken = {
	.func = on_taken,
	.flags = FTRACE_OPS_FL_IPMODIFY,
};

static int take(void)
{
	struct kprobe kp = { .symbol_name = function };
	int ret = register_kprobe(&kp);

	if (ret)
		return ret;
	unregister_kprobe(&kp);
	ret = ftrace_set_filter_ip(&taken, (unsigned long)kp.addr, 0, 0);
	if (!ret)
		ret = register_ftrace_function(&taken);
	if (ret)
		ftrace_free_filter(&taken);
	return ret;
}

/* --- What only the debug kernel sees, or the stock one with poison ------- */

static DEFINE_MUTEX(one);
static DEFINE_MUTEX(two);
static DEFINE_SPINLOCK(spin);
static LIST_HEAD(head);
static struct list_head item;
static volatile int shift = 40;

/* Volatile, or the compiler would see what is wrong and leave it out. */
static char *volatile memory;

static void never(struct timer_list *t)
{
}

static void lock_both(struct mutex *first, struct mutex *second)
{
	mutex_lock(first);
	mutex_lock(second);
	mutex_unlock(second);
	mutex_unlock(first);
}

/* Writes that are seen when the memory is next given out, or back. */
static bool provoke_poison(void)
{
	struct page *page;
	int i;

	if (!strcmp(what, "dangling")) {
		memory = kmalloc(64, GFP_KERNEL);
		kfree(memory);
		memory[16] = 1;
		for (i = 0; i < 100; i++)
			kfree(kmalloc(64, GFP_KERNEL));
	} else if (!strcmp(what, "past")) {
		memory = kmalloc(64, GFP_KERNEL);
		memory[64] = 1;
		kfree(memory);
	} else if (!strcmp(what, "page")) {
		page = alloc_page(GFP_KERNEL);
		memory = page_address(page);
		__free_page(page);
		memset(memory + 100, 1, 20);
		for (i = 0; i < 100; i++)
			__free_page(alloc_page(GFP_KERNEL));
	} else {
		return false;
	}
	return true;
}

static bool provoke_hidden(void)
{
	struct timer_list *timer;
	int i;

	if (!strcmp(what, "freed")) {
		memory = kmalloc(64, GFP_KERNEL);
		kfree(memory);
		pr_info("read %d\n", ((volatile char *)memory)[8]);
	} else if (!strcmp(what, "beyond")) {
		memory = kmalloc(64, GFP_KERNEL);
		pr_info("read %d\n", ((volatile char *)memory)[64]);
		kfree(memory);
	} else if (!strcmp(what, "order")) {
		lock_both(&one, &two);
		lock_both(&two, &one);
	} else if (!strcmp(what, "sleep")) {
		spin_lock(&spin);
		might_sleep();
		spin_unlock(&spin);
	} else if (!strcmp(what, "leak")) {
		for (i = 0; i < 10; i++)
			memory = kmalloc(64, GFP_KERNEL);
		memory = NULL;
	} else if (!strcmp(what, "list")) {
		list_add(&item, &head);
		list_del(&item);
		list_del(&item);
	} else if (!strcmp(what, "timer")) {
		timer = kmalloc(sizeof(*timer), GFP_KERNEL);
		timer_setup(timer, never, 0);
		mod_timer(timer, jiffies + 60 * HZ);
		kfree(timer);
	} else if (!strcmp(what, "shift")) {
		pr_info("shifted %d\n", 1 << shift);
	} else {
		return false;
	}
	return true;
}

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
	} else if (!strcmp(what, "take")) {
		return take();
	} else if (!provoke_poison() && !provoke_hidden()) {
		return -EINVAL;
	}
	return 0;
}
module_init(provoke_init);

static void __exit provoke_exit(void)
{
	if (!strcmp(what, "take")) {
		unregister_ftrace_function(&taken);
		ftrace_free_filter(&taken);
	}
}
module_exit(provoke_exit);

MODULE_DESCRIPTION("provokes complaints of the kernel");
MODULE_LICENSE("GPL");
