//! This process and its decoder processes: their processor time, from Linux's `/proc`, and an end in time.

use std::fs;
use std::time::Duration;

/// The unit of processor time in `/proc`: USER_HZ is 100 per second on every architecture that we build for.
const TICK: Duration = Duration::from_millis(10);

/// The ids of this process and of its children, which are its decoder processes.
pub(crate) fn processes() -> Vec<u32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: String = children.collect();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(std::process::id()).chain(children).collect()
}

/// Longest that a process takes to end once a session is broken.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Kills this process after five seconds, unless it has ended by then: a session that hangs may keep it alive, whatever it
/// does to end. A test's process goes on.
pub(crate) fn end_in_time() {
    if cfg!(test) {
        return;
    }
    let ending = std::thread::Builder::new().name("end".into()).spawn(move || {
        std::thread::sleep(END_TIMEOUT);
        tracing::error!(timeout_s = END_TIMEOUT.as_secs(), "the process did not end in time, it is killed");
        if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL) {
            tracing::error!(%error, "the process cannot be killed");
        }
    });
    if let Err(error) = ending {
        tracing::error!(%error, "cannot start a thread that ends the process in time");
    }
}

/// The processor time that this process and its decoder processes have used so far, those that ended included, to a
/// hundredth of a second each; `None` where the system does not report it.
pub(crate) fn processor_time() -> Option<Duration> {
    // The file exists only in a kernel with CONFIG_PROC_CHILDREN.
    fs::metadata("/proc/thread-self/children").ok()?;
    processes().into_iter().map(|pid| used(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).sum()
}

/// The sum of fields 14 to 17 of proc_pid_stat(5): the process's own time, and that of the children it has waited for. The
/// second field, a name, may contain spaces and brackets.
fn used(stat: &str) -> Option<Duration> {
    fields(stat)?.into_iter().try_fold(0, u32::checked_add).map(|ticks| TICK * ticks)
}

fn fields(stat: &str) -> Option<[u32; 4]> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let ticks: Vec<u32> =
        behind_name.split_whitespace().skip(11).take(4).map_while(|field| field.parse().ok()).collect();
    ticks.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_behind_any_name() {
        let stat = "7 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 100 50 30 20 20 0 1 0 100";
        assert_eq!(used(stat), Some(Duration::from_secs(2)));
        assert_eq!(used("7 (a) R 1 2 3"), None);
    }

    #[test]
    fn what_a_child_that_is_gone_has_used_is_not_forgotten() {
        let of_children = || {
            let [_, _, user, system] = fields(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
            user + system
        };
        let before = of_children();
        let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", busy]).status().unwrap().success());
        assert!(of_children() >= before + 5);
    }

    #[test]
    fn work_is_seen() {
        let before = processor_time().unwrap();
        let mut sum = 0u64;
        while processor_time().unwrap() < before + TICK * 2 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
