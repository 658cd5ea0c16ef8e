//! What a decoder process gives up before it has the first byte of an image: files, network, other programs, most system
//! calls, and more memory than an image may take.
//!
//! The layers are independent. A layer that the kernel or a container does not have is reported, and the others stay.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};

use landlock::{ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::protocol::{Confinement, MAX_IMAGES_PER_PROCESS};
use crate::config::DecodeConfig;

/// Memory beside what decoding one image may take: the file, the resizer's passes, the prepared pixels, and what a
/// hash takes: 12 bytes a column, or 3 MiB.
const MARGIN_BYTES: u64 = 512 << 20;

/// The highest score: where memory is short, decoder processes are killed before any other (proc_pid_oom_score_adj(5)).
const OOM_SCORE: &str = "1000";

/// Confines this process, which has one thread, until it ends. All it keeps is one socket.
pub(super) fn confine(limits: &DecodeConfig, socket: &impl AsRawFd) -> Confinement {
    let mut confinement = Confinement::default();
    let mut add = |name: &str, layer: Result<String, String>| match layer {
        Ok(active) => confinement.active.push(active),
        Err(why) => confinement.missing.push(format!("{name} ({why})")),
    };
    add("kill on worker exit", kill_on_worker_exit());
    add("first choice of the out-of-memory killer", prefer_for_oom_kill());
    // The order matters: the size is read from a file, the ruleset is a descriptor, and the filter forbids both.
    let size = address_space_bytes();
    add("Landlock", landlock());
    add("resource limits", size.and_then(|now| resource_limits(now, limits)));
    add("seccomp", seccomp(socket.as_raw_fd()));
    confinement
}

/// A process that reads its socket ends when the socket is closed. This ends one that does not read it any more.
fn kill_on_worker_exit() -> Result<String, String> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| e.to_string())?;
    Ok("kill on worker exit".into())
}

fn prefer_for_oom_kill() -> Result<String, String> {
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(|e| format!("/proc/self/oom_score_adj: {e}"))?;
    Ok("first choice of the out-of-memory killer".into())
}

/// A ruleset without any rule: no file, no port, and no signal or abstract socket of another process.
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
        (RulesetStatus::NotEnforced, _) => Err("this kernel does not support it".into()),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(format!("Landlock (ABI {})", effective_abi as i32)),
        (_, status) => Err(format!("{status:?}")),
    }
}

/// The address space in use.
fn address_space_bytes() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| format!("/proc/self/status: {e}"))?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.split_whitespace().next()?.parse().ok());
    size.map(|kib: u64| kib << 10).ok_or_else(|| "/proc/self/status: it has no VmSize".into())
}

fn resource_limits(now: u64, limits: &DecodeConfig) -> Result<String, String> {
    let memory = now.saturating_add(limits.max_decoded_bytes).saturating_add(MARGIN_BYTES);
    // For all images of this process. The worker limits the time of one image.
    let seconds = u64::from(MAX_IMAGES_PER_PROCESS).saturating_mul(limits.deadline_ms) / 1000 + 1;
    for (resource, limit) in [
        (Resource::As, memory),
        (Resource::Cpu, seconds),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nofile, 0),
        (Resource::Nproc, 0),
    ] {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) }).map_err(|e| e.to_string())?;
    }
    Ok("memory and processor time limits".into())
}

/// Allows what decoding needs: the socket, memory, and ending. A few calls fail, and any other system call kills the
/// process.
fn seccomp(socket: RawFd) -> Result<String, String> {
    // A filter has two actions, so that there are two filters. The first one applied must be the one that lets the call
    // pass which applies the second. The kernel follows the strictest of their answers.
    for filter in [refusing_filter(), killing_filter(socket)] {
        let filter = filter.map_err(|e| e.to_string())?;
        seccompiler::apply_filter(&filter).map_err(|e| e.to_string())?;
    }
    Ok("seccomp".into())
}

/// Calls that fail with EPERM. Libraries make them to learn how many threads they may use, and go on with one.
const REFUSED: [i64; 2] = [libc::SYS_openat, libc::SYS_sched_getaffinity];

fn refusing_filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?.try_into()
}

fn killing_filter(socket: RawFd) -> Result<BpfProgram, seccompiler::BackendError> {
    let allowed = [
        libc::SYS_close,
        // Memory.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        // Seeds of hash maps, and the time where it cannot be read without a call.
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
    // What the other filter refuses must not kill here.
    let allowed = allowed.into_iter().chain(REFUSED);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = allowed.map(|call| (call, Vec::new())).collect();
    let only_if = |argument, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
    };
    // The socket, and standard error, where a panic writes its message and which is discarded. The worker may have
    // inherited other descriptors, which its children then have too; they cannot be used here.
    let descriptor = |number: RawFd| only_if(0, SeccompCmpOp::Eq, u64::from(number.unsigned_abs()));
    for call in [libc::SYS_read, libc::SYS_write, libc::SYS_recvfrom, libc::SYS_sendto] {
        rules.insert(call, vec![descriptor(socket)?]);
    }
    rules.entry(libc::SYS_write).or_default().push(descriptor(libc::STDERR_FILENO)?);
    // No executable memory.
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only_if(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // `abort` sends a signal to this process. Signals to other processes are not allowed.
    rules.insert(libc::SYS_tgkill, vec![only_if(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}
