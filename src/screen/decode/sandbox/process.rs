//! The worker's half of decoding in processes: one process for each decoder thread, replaced when it ends.
//!
//! An image is tried in two processes before it is called undecodable. A process that ended before it had the image does
//! not count, since a kill by memory or by process group may hit any process. Processor time is limited first and wall
//! clock time second: otherwise images would be at fault for a busy machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::protocol::{
    Confinement, DecoderMessage, MAX_IMAGES_PER_PROCESS, WorkerMessage, receive, send, unexpected_message,
};
use crate::config::DecodeConfig;
use crate::detector::Geometry;
use crate::error_text;
use crate::job::{ImageInfo, ViewHash, format_name};
use crate::screen::decode::memory_budget::{MAX_MEMORY_REQUESTS, MemorySource};
use crate::screen::decode::{DecodeRequest, DecodedImage, DecodedView};
use crate::screen::error::{DecoderProcessError, ProcessEnding, ScreenError, Undecodable, one_line};
use crate::screen::pixels::Pixels;

/// How long a process may take until it is ready. It has next to nothing to do.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process whose socket failed may take to end by itself, so that its own ending is known and not our kill.
const EXIT_TIMEOUT: Duration = Duration::from_millis(200);

/// How many times its processor time an image may take by the clock. A process that waits for ever uses no processor time.
const WALL_CLOCK_FACTOR: u32 = 3;

/// The quality of a hash is at most this.
const MAX_QUALITY: u8 = 100;

/// Processes in which an image is tried.
const MAX_TRIES: u32 = 2;

/// How long to try to start another process. No image is at fault where the machine cannot start one now.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause between two such tries.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Processes in a row that may end before they have the image.
const MAX_ENDED_BEFORE_IMAGE: u32 = 10;

/// One thread's decoder process, which is replaced when it ends.
pub(in crate::screen::decode) struct SupervisedDecoder<'a> {
    config: &'a DecodeConfig,
    memory: &'a dyn MemorySource,
    process: Option<DecoderProcess>,
}

/// A decoder process's answer to an image.
enum DecoderAnswer {
    Decoded(DecodedImage),
    Undecodable(Undecodable),
}

/// Why a process gave no answer to an image.
enum DecodeFault {
    /// It ended before it had the image.
    EndedBeforeImage(io::Error),
    /// It ended, or sent an invalid message.
    Failed(io::Error),
    /// It exceeded this time limit.
    TimedOut(String),
}

impl From<io::Error> for DecodeFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut(error.to_string()),
            _ => Self::Failed(error),
        }
    }
}

impl<'a> SupervisedDecoder<'a> {
    /// Starts the first process.
    ///
    /// # Errors
    /// When the system refuses a process, or the process does not become ready.
    pub(in crate::screen::decode) fn start(
        config: &'a DecodeConfig,
        memory: &'a dyn MemorySource,
    ) -> Result<Self, DecoderProcessError> {
        Ok(Self { config, memory, process: Some(DecoderProcess::start(config)?) })
    }

    /// What confines the process that runs.
    pub(in crate::screen::decode) fn confinement(&self) -> Option<Confinement> {
        self.process.as_ref().map(|process| process.confinement.clone())
    }

    /// Decodes one image.
    ///
    /// # Errors
    /// When the image cannot be decoded, or no process is available.
    pub(in crate::screen::decode) fn decode(
        &mut self,
        request: &DecodeRequest<'_>,
    ) -> Result<DecodedImage, ScreenError> {
        let (mut tries, mut ended_before_image) = (0, 0);
        loop {
            let mut process = match self.process.take().and_then(DecoderProcess::if_ready) {
                Some(process) => process,
                None => self.restart()?,
            };
            let fault = match process.decode(request, self.config, self.memory) {
                Ok(answer) => {
                    self.process = Some(process).filter(|process| process.images < MAX_IMAGES_PER_PROCESS);
                    return match answer {
                        DecoderAnswer::Decoded(decoded) => Ok(decoded),
                        DecoderAnswer::Undecodable(undecodable) => Err(undecodable.into()),
                    };
                }
                Err(fault) => fault,
            };
            let (reason, is_killed) = match fault {
                DecodeFault::EndedBeforeImage(error) => {
                    ended_before_image += 1;
                    if ended_before_image == MAX_ENDED_BEFORE_IMAGE {
                        let (count, ending) = (ended_before_image, process.ending(error));
                        return Err(DecoderProcessError::EndedBeforeImage { count, ending }.into());
                    }
                    continue;
                }
                DecodeFault::TimedOut(limit) => (format!("decoding took longer than {limit}"), false),
                DecodeFault::Failed(error) => {
                    let ending = process.ending(error);
                    (format!("the decoder process failed on the image: {ending}"), ending.is_killed())
                }
            };
            tracing::warn!(reason, "decoder process replaced");
            tries += 1;
            if tries == MAX_TRIES && is_killed {
                return Err(DecoderProcessError::Killed { count: tries }.into());
            }
            if tries == MAX_TRIES {
                return Err(Undecodable(reason).into());
            }
        }
    }

    /// Starts another process, and tries for a while to do so.
    fn restart(&self) -> Result<DecoderProcess, DecoderProcessError> {
        let since = Instant::now();
        loop {
            match DecoderProcess::start(self.config) {
                Ok(process) => return Ok(process),
                Err(error) if since.elapsed() > RESTART_TIMEOUT => return Err(error),
                Err(error) => {
                    let error = error_text(&error);
                    tracing::warn!(error, "decoder process not started, retrying after a delay");
                }
            }
            std::thread::sleep(RESTART_DELAY);
        }
    }
}

/// A decoder process. Dropping it ends it.
struct DecoderProcess {
    child: Child,
    socket: DeadlineSocket,
    confinement: Confinement,
    /// Images that were sent to it so far.
    images: u32,
}

impl DecoderProcess {
    fn start(config: &DecodeConfig) -> Result<Self, DecoderProcessError> {
        let program = if config.helper.is_empty() { "/proc/self/exe" } else { &config.helper };
        let refused = |source| DecoderProcessError::Spawn { program: program.to_owned(), source };
        let (ours, theirs) = UnixStream::pair().map_err(refused)?;
        let child = Command::new(program)
            .arg0("pixwarden")
            .arg("decoder")
            .env_clear()
            .current_dir("/")
            // Ctrl-C on a terminal is for the worker, which drains.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(refused)?;
        let socket = DeadlineSocket::new(ours, child.id());
        let mut process = Self { child, socket, confinement: Confinement::default(), images: 0 };
        match process.set_up(config) {
            Ok(confinement) => {
                process.confinement = confinement;
                Ok(process)
            }
            Err(error) => {
                let ending = process.ending(error);
                Err(DecoderProcessError::NotReady { program: format!("{program} decoder"), ending })
            }
        }
    }

    fn set_up(&mut self, config: &DecodeConfig) -> io::Result<Confinement> {
        send(&mut self.socket, &WorkerMessage::Setup { limits: config.clone() })?;
        match receive(&mut self.socket)? {
            DecoderMessage::Ready { confinement } => Ok(confinement),
            _ => Err(unexpected_message()),
        }
    }

    fn decode(
        &mut self,
        request: &DecodeRequest<'_>,
        config: &DecodeConfig,
        memory: &dyn MemorySource,
    ) -> Result<DecoderAnswer, DecodeFault> {
        let &DecodeRequest { bytes, geometries, mode } = request;
        self.images += 1;
        self.socket.start_deadline(Duration::from_millis(config.deadline_ms));
        let message = WorkerMessage::Image { bytes: bytes.len() as u64, geometries: geometries.to_vec(), mode };
        let sent = send(&mut self.socket, &message).and_then(|()| self.socket.write_all(bytes));
        sent.map_err(DecodeFault::EndedBeforeImage)?;
        let (mut held, mut requests) = (None, 0);
        loop {
            match receive(&mut self.socket)? {
                DecoderMessage::MemoryNeeded { bytes }
                    if bytes <= config.max_decoded_bytes && requests < MAX_MEMORY_REQUESTS =>
                {
                    requests += 1;
                    drop(held.take());
                    let since = Instant::now();
                    held = Some(memory.take(bytes));
                    self.socket.extend_deadline(since.elapsed());
                    send(&mut self.socket, &WorkerMessage::MemoryGranted)?;
                }
                DecoderMessage::Decoded { format, width, height, frames, damage, views }
                    if (1..=config.max_views as usize).contains(&views.len()) =>
                {
                    let format = format_name(&format).ok_or_else(unexpected_message)?;
                    let info = ImageInfo { format, width, height, frames };
                    let is_view =
                        |hash: &ViewHash| (1..=8).contains(&hash.view.orientation) && hash.quality <= MAX_QUALITY;
                    // The size is that of the upright image, so that each side may have either limit.
                    let edge = config.max_width.max(config.max_height);
                    if width > edge || height > edge || !views.iter().all(is_view) {
                        return Err(unexpected_message().into());
                    }
                    let views = self.receive_pixels(views, geometries)?;
                    return Ok(DecoderAnswer::Decoded(DecodedImage { info, damage: one_line(&damage), views }));
                }
                DecoderMessage::Undecodable { reason } => {
                    return Ok(DecoderAnswer::Undecodable(Undecodable(one_line(&reason))));
                }
                _ => return Err(unexpected_message().into()),
            }
        }
    }

    /// Receives the pixels of these views, as many as the geometries ask for.
    fn receive_pixels(&mut self, views: Vec<ViewHash>, geometries: &[Geometry]) -> io::Result<Vec<DecodedView>> {
        let mut receive = |geometry: &Geometry| {
            let Geometry { width, height, .. } = *geometry;
            let mut data = vec![0; width as usize * height as usize * 3];
            self.socket.read_exact(&mut data)?;
            Ok(Arc::new(Pixels { width, height, data }))
        };
        let mut receive_view = |ViewHash { view, pdq, quality }| {
            let pixels = geometries.iter().map(&mut receive).collect::<io::Result<_>>()?;
            Ok(DecodedView { view, pdq, quality, pixels })
        };
        views.into_iter().map(&mut receive_view).collect()
    }

    /// This process, if it is alive and sent nothing since the last image: what comes before a question is no answer to it.
    fn if_ready(mut self) -> Option<Self> {
        let is_alive = matches!(self.child.try_wait(), Ok(None));
        let is_silent = matches!(rustix::io::ioctl_fionread(&self.socket.stream), Ok(0));
        (is_alive && is_silent).then_some(self)
    }

    /// How a process ended whose socket failed with `error`.
    fn ending(&mut self, error: io::Error) -> ProcessEnding {
        let since = Instant::now();
        while since.elapsed() < EXIT_TIMEOUT {
            match self.child.try_wait() {
                Ok(Some(status)) => return ending_of(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        ProcessEnding::Failed(error)
    }
}

impl Drop for DecoderProcess {
    fn drop(&mut self) {
        // It holds nothing that a kill could leave half done, and it may not react to anything else any more.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::error!(%error, "decoder process not killed");
        }
    }
}

fn ending_of(status: ExitStatus) -> ProcessEnding {
    match status.signal() {
        Some(signal) => ProcessEnding::Signal(signal),
        None => ProcessEnding::Exited(status.code().unwrap_or(-1)),
    }
}

/// A socket with one deadline over everything that is sent and received, however slowly: an amount of processor time of the
/// process at the other end, and [`WALL_CLOCK_FACTOR`] times as much by the clock.
struct DeadlineSocket {
    stream: UnixStream,
    /// The scheduler's statistics of the other end, which has one thread. Without them all time that passes counts as its
    /// processor time.
    schedstat: Option<File>,
    /// Processor time that it may use.
    allowed: Duration,
    /// Processor time that it had used before.
    used_before: Duration,
    /// When to check the processor time again.
    next_check: Instant,
    /// The deadline by the clock.
    deadline: Instant,
}

impl DeadlineSocket {
    /// The first deadline is [`START_TIMEOUT`] by the clock.
    fn new(stream: UnixStream, process: u32) -> Self {
        let schedstat = File::open(format!("/proc/{process}/schedstat")).ok();
        let deadline = Instant::now() + START_TIMEOUT;
        let (allowed, used_before) = (START_TIMEOUT, Duration::ZERO);
        Self { stream, schedstat, allowed, used_before, next_check: deadline, deadline }
    }

    fn start_deadline(&mut self, allowed: Duration) {
        let now = Instant::now();
        (self.allowed, self.used_before) = (allowed, self.used().unwrap_or_default());
        (self.next_check, self.deadline) = (now + allowed, now + allowed * WALL_CLOCK_FACTOR);
    }

    /// Adds time in which the process had to wait for the worker.
    fn extend_deadline(&mut self, time: Duration) {
        self.next_check += time;
        self.deadline += time;
    }

    /// Processor time of the other end so far: nanoseconds, the first figure (Documentation/scheduler/sched-stats.rst).
    fn used(&self) -> Option<Duration> {
        let mut text = [0; 64];
        let length = self.schedstat.as_ref()?.read_at(&mut text, 0).ok()?;
        let figure = std::str::from_utf8(&text[..length]).ok()?.split_whitespace().next()?;
        // A kernel without these statistics gives 0.
        figure.parse().ok().filter(|nanoseconds| *nanoseconds > 0).map(Duration::from_nanos)
    }

    /// How long to wait on the socket before this is asked again.
    fn time_left(&mut self) -> io::Result<Option<Duration>> {
        let now = Instant::now();
        if now >= self.next_check {
            let used = self.used().map_or(self.allowed, |used| used.saturating_sub(self.used_before));
            self.next_check = (now + self.allowed.saturating_sub(used)).min(self.deadline);
        }
        let timed_out = |limit: String| Err(io::Error::new(io::ErrorKind::TimedOut, limit));
        match self.next_check.saturating_duration_since(now) {
            Duration::ZERO if now >= self.deadline => {
                timed_out(format!("{} ms", (self.allowed * WALL_CLOCK_FACTOR).as_millis()))
            }
            Duration::ZERO => timed_out(format!("{} ms of processor time", self.allowed.as_millis())),
            left => Ok(Some(left)),
        }
    }
}

impl Read for DeadlineSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.time_left()?;
            self.stream.set_read_timeout(left)?;
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

impl Write for DeadlineSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            let left = self.time_left()?;
            self.stream.set_write_timeout(left)?;
            match self.stream.write(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
