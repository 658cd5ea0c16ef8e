//! The worker's half of decoding in a process: one process a decoder thread, kept over images, replaced when it dies.
//!
//! An image is tried in two processes before it is blamed: whoever kills by memory or by group may hit an innocent. What
//! is limited is processor time, or a busy machine would blame images.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Memory;
use super::confine::Layers;
use super::protocol::{Order, Report, receive, send};
use super::{Decoded, Undecodable, Unread, Wanted};
use crate::config::DecodeConfig;
use crate::detector::Geometry;
use crate::job::{Seen, format_name};
use crate::screen::prepare::Pixels;

/// Longest a process may take until it is ready; it has next to nothing to do.
const START: Duration = Duration::from_secs(10);

/// Longest a process whose socket is closed may take to be gone by itself, so that its own end is seen and not ours.
const GONE: Duration = Duration::from_millis(200);

/// Images that one process decodes, so that what an image may have done to it does not last.
const IMAGES: u32 = 1000;

/// How many times its processor time an image may take by the clock: a process that waits for ever uses none.
const PATIENCE: u32 = 3;

/// Processes an image is tried in.
const TRIES: u32 = 2;

/// Times that memory may be asked for over one image; formats ask once or twice.
const MOST_NEEDS: u32 = 8;

/// Tries to have another process, and the pause between them: a machine that has none to give now is no image's fault.
const STARTS: u32 = 60;
const BETWEEN_STARTS: Duration = Duration::from_secs(1);

/// Longest reason that is believed.
const MAX_REASON: usize = 1000;

/// One thread's process, and how to have another.
pub(super) struct Decoder<'a> {
    config: &'a DecodeConfig,
    memory: &'a dyn Memory,
    running: Option<Running>,
}

/// What ended a try.
enum Fault {
    /// It is gone, or said what it must not.
    Broken(io::Error),
    /// It took too long.
    Late,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Broken(error),
        }
    }
}

impl<'a> Decoder<'a> {
    /// Starts the first process.
    ///
    /// # Errors
    /// When the system refuses one, or it does not become ready.
    pub(super) fn start(config: &'a DecodeConfig, memory: &'a dyn Memory) -> io::Result<Self> {
        Ok(Self { config, memory, running: Some(Running::start(config)?) })
    }

    /// What confines the process that runs.
    pub(super) fn layers(&self) -> Option<Layers> {
        self.running.as_ref().map(|running| running.layers.clone())
    }

    /// Decodes one image.
    ///
    /// # Errors
    /// When it cannot be decoded, or no process can be had that would.
    pub(super) fn decode(&mut self, wanted: &Wanted<'_>) -> Result<Decoded, Unread> {
        let mut over_it = String::new();
        for _ in 0..TRIES {
            let mut running = match self.running.take() {
                Some(running) => running,
                None => self.another().map_err(|e| Unread::NoDecoder(e.to_string()))?,
            };
            match running.decode(wanted, self.config, self.memory) {
                Ok(decoded) => {
                    self.running = Some(running).filter(|running| running.images < IMAGES);
                    return Ok(decoded?);
                }
                Err(Fault::Late) => {
                    over_it = format!("decoding took longer than {} ms", self.config.deadline_ms);
                }
                Err(Fault::Broken(error)) => {
                    over_it = format!("the decoder died over it: {}", running.end(&error));
                }
            }
            tracing::warn!(why = over_it, "a decoder is replaced");
        }
        Err(Unread::Undecodable(Undecodable(over_it)))
    }
}

impl Decoder<'_> {
    /// Another process, as soon as one can be had.
    fn another(&self) -> io::Result<Running> {
        let mut tries = 1;
        loop {
            match Running::start(self.config) {
                Ok(running) => return Ok(running),
                Err(error) if tries >= STARTS => return Err(error),
                Err(error) => tracing::warn!(%error, "no decoder can be had, trying again"),
            }
            tries += 1;
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
            Err(e) => Err(io::Error::other(format!("{program} decoder: {}", running.end(&e)))),
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
        // An answer that is there before the question is none to this image.
        if rustix::io::ioctl_fionread(&self.line.stream).map_err(io::Error::from)? > 0 {
            return Err(out_of_turn().into());
        }
        self.images += 1;
        self.line.begin(Duration::from_millis(config.deadline_ms));
        send(&mut self.line, &Order::Image { bytes: bytes.len() as u64, geometries: geometries.to_vec(), mode })?;
        self.line.write_all(bytes)?;
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

    /// How a process whose line is broken ended, in words.
    fn end(&mut self, error: &io::Error) -> String {
        let since = Instant::now();
        while since.elapsed() < GONE {
            match self.child.try_wait() {
                Ok(Some(status)) => return ending(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        error.to_string()
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

fn ending(status: ExitStatus) -> String {
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
    /// The first deadline is that of a start.
    fn new(stream: UnixStream, process: u32) -> Self {
        let schedstat = File::open(format!("/proc/{process}/schedstat")).ok();
        let now = Instant::now();
        let mut line = Self { stream, schedstat, allowed: START, before: Duration::ZERO, look: now, until: now };
        line.begin(START);
        line
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
        figure.parse().ok().map(Duration::from_nanos)
    }

    /// How long to wait before asking again.
    fn left(&mut self) -> io::Result<Option<Duration>> {
        let now = Instant::now();
        if now >= self.look {
            let used = self.used().map_or(self.allowed, |used| used.saturating_sub(self.before));
            self.look = (now + self.allowed.saturating_sub(used)).min(self.until);
        }
        match self.look.saturating_duration_since(now) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
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
