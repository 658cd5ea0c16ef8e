//! What a process that decodes gives up before it sees the first byte of an image: files, network, other programs, most
//! system calls, and more memory than an image may take.
//!
//! Each layer stands by itself. One that the kernel or a container does not have is named, and the others stay.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};

use landlock::{ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::protocol::{IMAGES, Layers};
use crate::config::DecodeConfig;

/// Memory beside what one image's decoding is admitted for: the file itself, the resizer's passes, the pixels.
const MARGIN_BYTES: u64 = 512 << 20;

/// The highest score: where memory is short, a decoder goes before anybody else (proc_pid_oom_score_adj(5)).
const FIRST_TO_GO: &str = "1000";

/// Confines the process, which has one thread, for the rest of its life. It keeps one socket.
pub(super) fn confine(limits: &DecodeConfig, socket: &impl AsRawFd) -> Layers {
    let mut layers = Layers::default();
    let mut add = |name: &str, layer: Result<String, String>| match layer {
        Ok(active) => layers.active.push(active),
        Err(why) => layers.missing.push(format!("{name} ({why})")),
    };
    add("end with the worker", end_with_the_worker());
    add("first to go", first_to_go());
    // In this order: the size is read from a file, the ruleset is one, and the filter allows none of all this.
    let size = size();
    add("landlock", landlock());
    add("limits", size.and_then(|now| own_limits(now, limits)));
    add("seccomp", seccomp(socket.as_raw_fd()));
    layers
}

/// The socket's end tells a process that listens; this ends one that no longer does.
fn end_with_the_worker() -> Result<String, String> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| e.to_string())?;
    Ok("end with the worker".into())
}

fn first_to_go() -> Result<String, String> {
    std::fs::write("/proc/self/oom_score_adj", FIRST_TO_GO).map_err(|e| e.to_string())?;
    Ok("first to go".into())
}

/// No rule at all: no file, no port, and no signal or abstract socket beyond this process.
fn landlock() -> Result<String, String> {
    let newest = ABI::V7;
    let restrict = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(newest))?
            .handle_access(AccessNet::from_all(newest))?
            .scope(Scope::from_all(newest))?
            .create()?
            .restrict_self()
    };
    let status = restrict().map_err(|e| e.to_string())?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Err("this kernel has none".into()),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(format!("landlock ABI {}", effective_abi as i32)),
        (_, status) => Err(format!("{status:?}")),
    }
}

/// The address space in use, in bytes.
fn size() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.split_whitespace().next()?.parse().ok());
    size.map(|kib: u64| kib << 10).ok_or_else(|| "/proc/self/status does not tell the size".into())
}

fn own_limits(now: u64, limits: &DecodeConfig) -> Result<String, String> {
    let memory = now.saturating_add(limits.max_decoded_bytes).saturating_add(MARGIN_BYTES);
    // Of all its images; of one the worker is the judge, as long as it runs.
    let seconds = u64::from(IMAGES).saturating_mul(limits.deadline_ms) / 1000 + 1;
    for (resource, most) in [
        (Resource::As, memory),
        (Resource::Cpu, seconds),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nofile, 0),
        (Resource::Nproc, 0),
    ] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(|e| e.to_string())?;
    }
    Ok("limits of memory and processor time".into())
}

/// What decoding needs of the kernel: the socket, memory, and a way to end. Anything else kills.
fn seccomp(socket: RawFd) -> Result<String, String> {
    let filter = filter(socket).map_err(|e| e.to_string())?;
    seccompiler::apply_filter(&filter).map_err(|e| e.to_string())?;
    Ok("seccomp".into())
}

fn filter(socket: RawFd) -> Result<BpfProgram, seccompiler::BackendError> {
    let plain = [
        libc::SYS_close,
        // Memory.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        // Seeds of hash maps, and times where they cannot be read without a call.
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        // Ending, also by `abort`.
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_getpid,
        libc::SYS_gettid,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = plain.into_iter().map(|call| (call, Vec::new())).collect();
    let only = |argument, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
    };
    // The socket, and the words of a panic, which go nowhere. Whoever started the worker may have left it descriptors that
    // its children have too; they are of no use here.
    let descriptor = |number: RawFd| only(0, SeccompCmpOp::Eq, u64::from(number.unsigned_abs()));
    for call in [libc::SYS_read, libc::SYS_write, libc::SYS_recvfrom, libc::SYS_sendto] {
        rules.insert(call, vec![descriptor(socket)?]);
    }
    rules.entry(libc::SYS_write).or_default().push(descriptor(libc::STDERR_FILENO)?);
    // No memory that can be run.
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // `abort` signals this process; nobody may signal another.
    rules.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}
