//! The system calls that a server never makes, nor the tools that it runs. They fail with EPERM, as they do
//! for who may not make them, and kill nothing.
//!
//! Which calls a server does make is decided by the libraries beneath it, and changes with them; which it
//! has no use for does not. So these are what is listed: the ways to other processes, to other namespaces, to
//! the kernel's own memory, and to the parts of the kernel that are attacked most.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use anyhow::{Context, Result};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// What no server has a use for.
const NEVER: &[c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Other namespaces and roots.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_syslog,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    // Files by other ways than their names.
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_mknodat,
];

#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[c_long] = &[
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_mknod,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[c_long] = &[];

/// What only a server over FUSE uses, and only to start.
pub(super) const MOUNTING: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
];

/// What the keeper does for a server that has one.
const BY_THE_KEEPER: &[c_long] = &[libc::SYS_umount2, libc::SYS_execve, libc::SYS_execveat];

/// What only a server over FUSE uses, all the time.
const RINGS: &[c_long] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// The flags with which a process is started in a namespace of its own.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// How system calls of the x32 kind are told from those of their numbers, which they otherwise are.
#[cfg(target_arch = "x86_64")]
const X32: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const X32: Option<i64> = None;

/// What a server cannot do from its start on.
pub(super) fn at_start(over_fuse: bool) -> Vec<c_long> {
    let others: [&[c_long]; 2] = if over_fuse {
        [&[], &[]]
    } else {
        [MOUNTING, RINGS]
    };
    [NEVER, NEVER_HERE, others[0], others[1]].concat()
}

/// What a server cannot do that has a keeper, which does for it what takes other programs.
pub(super) fn kept(over_fuse: bool) -> Vec<c_long> {
    let rings: &[c_long] = if over_fuse { &[] } else { RINGS };
    [NEVER, NEVER_HERE, MOUNTING, BY_THE_KEEPER, rings].concat()
}

/// Denies system calls to all threads of this process, those to come, and the programs that they run.
///
/// # Errors
/// The kernel's, if it has no filters of system calls.
pub(super) fn deny(calls: &[c_long]) -> Result<()> {
    for program in programs(calls)? {
        seccompiler::apply_filter_all_threads(&program).context("filter system calls")?;
    }
    Ok(())
}

/// The filters for that.
fn programs(calls: &[c_long]) -> Result<[BpfProgram; 2]> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.iter().map(|&call| (call, Vec::new())).collect();
    let namespaces = NAMESPACES.into_iter().map(|flag| {
        let flag = u64::from(flag.cast_unsigned());
        let is_set = SeccompCmpOp::MaskedEq(flag);
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, is_set, flag)?;
        SeccompRule::new(vec![condition])
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    let others: Vec<_> = X32
        .into_iter()
        .flat_map(|bit| {
            rules
                .iter()
                .map(move |(call, rules)| (call | bit, rules.clone()))
        })
        .collect();
    rules.extend(others);
    // Its flags are in memory, where a filter cannot look. The C library does without it if there is none.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([compile(rules, libc::EPERM)?, compile(clone3, libc::ENOSYS)?])
}

/// One filter. A program of another architecture, as of 32 bits on x86-64, is killed by it, which seccompiler has no
/// choice for; and an error instead would leave such a program without any call, even that to end. The tools that a server
/// runs are of its own architecture.
fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<BpfProgram> {
    let refused = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use rustix::io::Errno;
    use rustix::mount::{MountFlags, UnmountFlags};

    use super::*;

    /// Runs `check` on a thread of its own that is denied what a server is.
    fn confined(over_fuse: bool, check: impl FnOnce() + Send + 'static) {
        let confined = thread::spawn(move || {
            for program in programs(&at_start(over_fuse)).unwrap() {
                seccompiler::apply_filter(&program).unwrap();
            }
            check();
        });
        confined.join().unwrap();
    }

    fn mount() -> Errno {
        rustix::mount::mount("x", "/nonexistent", "tmpfs", MountFlags::empty(), None).unwrap_err()
    }

    #[test]
    fn what_is_denied_fails_with_eperm_and_all_else_goes_on() {
        confined(false, || {
            assert_eq!(mount(), Errno::PERM);
            // Nobody but root may: what it says to others is the same without a filter.
            assert_eq!(rustix::process::chroot("/nonexistent"), Err(Errno::PERM));
            let unmounted = rustix::mount::unmount("/nonexistent", UnmountFlags::empty());
            assert_ne!(unmounted, Ok(()));
            assert_eq!(thread::spawn(|| 7).join().unwrap(), 7);
            assert!(Command::new("true").status().unwrap().success());
            let unshared = Command::new("unshare").args(["--user", "true"]).output();
            assert!(!unshared.unwrap().status.success());
        });
    }

    #[test]
    fn a_server_over_fuse_may_mount_until_it_is_ready() {
        confined(true, || {
            // Without root it is not allowed to.
            let before = mount();
            assert_eq!(before == Errno::PERM, !rustix::process::geteuid().is_root());
            for program in programs(MOUNTING).unwrap() {
                seccompiler::apply_filter(&program).unwrap();
            }
            assert_eq!(mount(), Errno::PERM);
        });
    }
}
