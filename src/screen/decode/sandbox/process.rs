//! The worker's half of decoding in a process: one process a decoder thread, kept over images, replaced when it dies.
//!
//! An image is tried in two processes before it is blamed, and a process that was gone before it had the image counts for
//! none: whoever kills by memory or by group may hit an innocent. What is limited is processor time first, and only then
//! the clock, or a busy machine would blame images.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::budget::Memory;
use super::super::{Decoded, Undecodable, Unread, Wanted};
use super::protocol::{IMAGES, Layers, Order, Report, receive, send};
use crate::config::DecodeConfig;
use crate::detector::Geometry;
use crate::job::{Seen, format_name};
use crate::screen::pixels::Pixels;

/// Longest a process may take until it is ready; it has next to nothing to do.
const START: Duration = Duration::from_secs(10);

/// Longest a process whose socket is closed may take to be gone by itself, so that its own end is seen and not ours.
const GONE: Duration = Duration::from_millis(200);

/// How many times its processor time an image may take by the clock: a process that waits for ever uses none.
const PATIENCE: u32 = 3;

/// Processes an image is tried in.
const TRIES: u32 = 2;

/// Times that memory may be asked for over one image; formats ask once or twice.
const MOST_NEEDS: u32 = 8;

/// How long to try to have another process, and the pause in between: a machine that has none to give now is no image's
/// fault.
const STARTING: Duration = Duration::from_secs(60);
const BETWEEN_STARTS: Duration = Duration::from_secs(1);

/// Processes in a row that may be gone before they have an image.
const UNHEARD: u32 = 10;

/// Longest reason that is believed.
const MAX_REASON: usize = 1000;

/// One thread's process, and how to have another.
pub(in crate::screen::decode) struct Decoder<'a> {
    config: &'a DecodeConfig,
    memory: &'a dyn Memory,
    running: Option<Running>,
}

/// What ended a try.
enum Fault {
    /// It was gone before it had the image.
    Unheard(io::Error),
    /// It is gone, or said what it must not.
    Broken(io::Error),
    /// It took longer than this.
    Late(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Late(error.to_string()),
            _ => Self::Broken(error),
        }
    }
}

impl<'a> Decoder<'a> {
    /// Starts the first process.
    ///
    /// # Errors
    /// When the system refuses one, or it does not become ready.
    pub(in crate::screen::decode) fn start(config: &'a DecodeConfig, memory: &'a dyn Memory) -> io::Result<Self> {
        Ok(Self { config, memory, running: Some(Running::start(config)?) })
    }

    /// What confines the process that runs.
    pub(in crate::screen::decode) fn layers(&self) -> Option<Layers> {
        self.running.as_ref().map(|running| running.layers.clone())
    }

    /// Decodes one image.
    ///
    /// # Errors
    /// When it cannot be decoded, or no process can be had that would.
    pub(in crate::screen::decode) fn decode(&mut self, wanted: &Wanted<'_>) -> Result<Decoded, Unread> {
        let (mut tries, mut unheard) = (0, 0);
        loop {
            let mut running = match self.running.take().and_then(Running::if_ready) {
                Some(running) => running,
                None => self.another().map_err(|e| Unread::NoDecoder(e.to_string()))?,
            };
            let fault = match running.decode(wanted, self.config, self.memory) {
                Ok(decoded) => {
                    self.running = Some(running).filter(|running| running.images < IMAGES);
                    return Ok(decoded?);
                }
                Err(fault) => fault,
            };
            let (why, is_killed) = match fault {
                Fault::Unheard(error) => {
                    unheard += 1;
                    if unheard == UNHEARD {
                        return Err(Unread::NoDecoder(one_line(&running.ending(&error).0)));
                    }
                    continue;
                }
                Fault::Late(limit) => (format!("decoding took longer than {limit}"), false),
                Fault::Broken(error) => {
                    let (ending, is_killed) = running.ending(&error);
                    (format!("the decoder died over it: {}", one_line(&ending)), is_killed)
                }
            };
            tracing::warn!(why, "a decoder is replaced");
            tries += 1;
            if tries == TRIES && is_killed {
                // No image does that; a machine without memory does.
                return Err(Unread::NoDecoder(format!("{TRIES} were killed, the last by signal 9")));
            }
            if tries == TRIES {
                return Err(Unread::Undecodable(Undecodable(why)));
            }
        }
    }
}

impl Decoder<'_> {
    /// Another process, as soon as one can be had.
    fn another(&self) -> io::Result<Running> {
        let since = Instant::now();
        loop {
            match Running::start(self.config) {
                Ok(running) => return Ok(running),
                Err(error) if since.elapsed() > STARTING => return Err(error),
                Err(error) => tracing::warn!(%error, "no decoder can be had, trying again"),
            }
            std::thread::sleep(BETWEEN_STARTS);
        }
    }
}

/// A process that decodes. Dropping it ends it.
struct Running {
    child: Child,
    line: Line,
    layers: Layers,
    /// Decoded so far.
    images: u32,
}

impl Running {
    fn start(config: &DecodeConfig) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let program = if config.helper.is_empty() { "/proc/self/exe" } else { &config.helper };
        let child = Command::new(program)
            .arg0("pixwarden")
            .arg("decoder")
            .env_clear()
            .current_dir("/")
            // A terminal's Ctrl-C is for the worker, which drains.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))?;
        let line = Line::new(ours, child.id());
        let mut running = Self { child, line, layers: Layers::default(), images: 0 };
        match running.greet(config) {
            Ok(()) => Ok(running),
            Err(e) => Err(io::Error::other(format!("{program} decoder: {}", one_line(&running.ending(&e).0)))),
        }
    }

    fn greet(&mut self, config: &DecodeConfig) -> io::Result<()> {
        send(&mut self.line, &Order::Setup { limits: config.clone() })?;
        match receive(&mut self.line)? {
            Report::Ready { layers } => {
                self.layers = layers;
                Ok(())
            }
            _ => Err(out_of_turn()),
        }
    }

    fn decode(
        &mut self,
        wanted: &Wanted<'_>,
        config: &DecodeConfig,
        memory: &dyn Memory,
    ) -> Result<Result<Decoded, Undecodable>, Fault> {
        let &Wanted { bytes, geometries, mode } = wanted;
        self.images += 1;
        self.line.begin(Duration::from_millis(config.deadline_ms));
        let order = Order::Image { bytes: bytes.len() as u64, geometries: geometries.to_vec(), mode };
        send(&mut self.line, &order).and_then(|()| self.line.write_all(bytes)).map_err(Fault::Unheard)?;
        let (mut held, mut needs) = (None, 0);
        loop {
            match receive(&mut self.line)? {
                Report::Need { bytes } if bytes <= config.max_decoded_bytes && needs < MOST_NEEDS => {
                    needs += 1;
                    drop(held.take());
                    let since = Instant::now();
                    held = Some(memory.take(bytes));
                    self.line.waited(since.elapsed());
                    send(&mut self.line, &Order::Granted)?;
                }
                Report::Seen { format, width, height, frames, taken } if (1..=config.max_frames).contains(&taken) => {
                    let format = format_name(&format).ok_or_else(out_of_turn)?;
                    let seen = Seen { format, width, height, frames };
                    // As it stands upright, an image may be as wide as it may be high.
                    let edge = config.max_width.max(config.max_height);
                    if width > edge || height > edge || frames < taken {
                        return Err(out_of_turn().into());
                    }
                    return Ok(Ok(self.pixels(seen, taken, geometries)?));
                }
                Report::Undecodable { reason } => return Ok(Err(Undecodable(one_line(&reason)))),
                _ => return Err(out_of_turn().into()),
            }
        }
    }

    /// Takes the pixels in, as many as the geometries say.
    fn pixels(&mut self, seen: Seen, taken: u32, geometries: &[Geometry]) -> io::Result<Decoded> {
        let mut one = |geometry: &Geometry| {
            let Geometry { width, height, .. } = *geometry;
            let mut data = vec![0; width as usize * height as usize * 3];
            self.line.read_exact(&mut data)?;
            Ok(Arc::new(Pixels { width, height, data }))
        };
        let frames = (0..taken).map(|_| geometries.iter().map(&mut one).collect()).collect::<io::Result<_>>()?;
        Ok(Decoded { seen, frames })
    }

    /// This one, if it is alive and silent: what is said before a question is no answer to it.
    fn if_ready(mut self) -> Option<Self> {
        let is_alive = matches!(self.child.try_wait(), Ok(None));
        let is_silent = matches!(rustix::io::ioctl_fionread(&self.line.stream), Ok(0));
        (is_alive && is_silent).then_some(self)
    }

    /// How a process whose line is broken ended, in words, and whether by SIGKILL, which is nothing it does itself.
    fn ending(&mut self, error: &io::Error) -> (String, bool) {
        let since = Instant::now();
        while since.elapsed() < GONE {
            match self.child.try_wait() {
                Ok(Some(status)) => return (in_words(status), status.signal() == Some(libc::SIGKILL)),
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        (error.to_string(), false)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It holds nothing that a kill could leave half done, and may no longer listen to anything else.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::error!(%error, "a decoder cannot be ended");
        }
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, code) => format!("exit status {}", code.unwrap_or(-1)),
    }
}

fn one_line(reason: &str) -> String {
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}

fn out_of_turn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it said what makes no sense")
}

/// A socket with one deadline over all that is said and heard, however slowly: so much processor time of the process at
/// its other end, and some times as much by the clock.
struct Line {
    stream: UnixStream,
    /// Of the other end, which has one thread. Without it, all time that passes is taken for its own.
    schedstat: Option<File>,
    /// What it may use, and what it had used before.
    allowed: Duration,
    before: Duration,
    /// When to look at what it has used.
    look: Instant,
    /// When its time is over in any case.
    until: Instant,
}

impl Line {
    /// The first deadline is that of a start, by the clock.
    fn new(stream: UnixStream, process: u32) -> Self {
        let schedstat = File::open(format!("/proc/{process}/schedstat")).ok();
        let until = Instant::now() + START;
        Self { stream, schedstat, allowed: START, before: Duration::ZERO, look: until, until }
    }

    fn begin(&mut self, allowed: Duration) {
        let now = Instant::now();
        (self.allowed, self.before) = (allowed, self.used().unwrap_or_default());
        (self.look, self.until) = (now + allowed, now + allowed * PATIENCE);
    }

    /// Time that was not its own does not count.
    fn waited(&mut self, time: Duration) {
        self.look += time;
        self.until += time;
    }

    /// Processor time of the other end so far: nanoseconds, the first figure (Documentation/scheduler/sched-stats.rst).
    fn used(&self) -> Option<Duration> {
        let mut text = [0; 64];
        let length = self.schedstat.as_ref()?.read_at(&mut text, 0).ok()?;
        let figure = std::str::from_utf8(&text[..length]).ok()?.split_whitespace().next()?;
        // A kernel that does not keep it says 0.
        figure.parse().ok().filter(|nanoseconds| *nanoseconds > 0).map(Duration::from_nanos)
    }

    /// How long to wait before asking again.
    fn left(&mut self) -> io::Result<Option<Duration>> {
        let now = Instant::now();
        if now >= self.look {
            let used = self.used().map_or(self.allowed, |used| used.saturating_sub(self.before));
            self.look = (now + self.allowed.saturating_sub(used)).min(self.until);
        }
        let late = |limit: String| Err(io::Error::new(io::ErrorKind::TimedOut, limit));
        match self.look.saturating_duration_since(now) {
            Duration::ZERO if now >= self.until => late(format!("{} ms", (self.allowed * PATIENCE).as_millis())),
            Duration::ZERO => late(format!("{} ms of processor time", self.allowed.as_millis())),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.left()?;
            self.stream.set_read_timeout(left)?;
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

impl Write for Line {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            let left = self.left()?;
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
