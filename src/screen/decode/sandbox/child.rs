//! The process that decodes for a worker: one image at a time, on one thread, until its socket is closed.
//!
//! It knows nothing but what its socket, which is its standard input, tells it.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::super::budget::{Budget, Held, Memory};
use super::super::{Decoded, Tools, Undecodable, Wanted, decode_safely};
use super::confine::confine;
use super::protocol::{Order, Report, receive, send};
use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::{CropRounding, Filter, Geometry, Resize};

/// Serves the worker at the other end of standard input until that closes it.
///
/// # Errors
/// When standard input is no such socket, or says what it must not.
pub fn serve() -> io::Result<()> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Order::Setup { limits } = receive(&stream)? else { return Err(out_of_turn()) };
    let mut tools = Tools::new(&limits);
    warm_up(&limits, &mut tools)?;
    let layers = confine(&limits, &stream);
    send(&stream, &Report::Ready { layers })?;
    loop {
        let (bytes, geometries, mode) = match receive(&stream) {
            Ok(Order::Image { bytes, geometries, mode }) => (bytes, geometries, mode),
            Ok(_) => return Err(out_of_turn()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        let image = read(&stream, bytes)?;
        let memory = Worker { stream: &stream, is_asked: Cell::new(false) };
        let decoded = image.and_then(|image| {
            let wanted = Wanted { bytes: &image, geometries: &geometries, mode };
            decode_safely(&wanted, &limits, &memory, &mut tools)
        });
        match decoded {
            Ok(decoded) => tell(&stream, &decoded)?,
            Err(Undecodable(reason)) => send(&stream, &Report::Undecodable { reason })?,
        }
    }
}

/// What libraries look up once, such as what the processor can do, they look up while they may: on ARM, libjpeg-turbo
/// reads a file for it.
fn warm_up(limits: &DecodeConfig, tools: &mut Tools) -> io::Result<()> {
    let mut jpeg = io::Cursor::new(Vec::new());
    image::RgbImage::new(16, 16).write_to(&mut jpeg, image::ImageFormat::Jpeg).map_err(io::Error::other)?;
    let resize = Resize::Exact { width: 8, height: 8 };
    let geometry = Geometry { resize, filter: Filter::Bicubic, width: 8, height: 8, rounding: CropRounding::Down };
    let memory = Budget::new(limits.memory_bytes);
    // Limits may be so low that nothing is decoded, ever.
    let wanted = Wanted { bytes: jpeg.get_ref(), geometries: &[geometry], mode: DecodeMode::Exact };
    drop(decode_safely(&wanted, limits, &memory, tools));
    Ok(())
}

/// Something a confined process must not be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Attempt {
    /// To connect to an address.
    Network,
    /// To open a file.
    File,
    /// To run a program.
    Program,
    /// To use a descriptor that is not its socket.
    Descriptor,
    /// To take more memory than an image may.
    Memory,
}

/// Confines this process and tries what must fail. If it succeeds, or is the end of the process, is the answer.
///
/// # Errors
/// What refused the attempt.
pub fn attempt(attempt: Attempt) -> io::Result<()> {
    let limits = DecodeConfig::default();
    confine(&limits, &io::stdin());
    match attempt {
        Attempt::Network => std::net::TcpStream::connect(("127.0.0.1", 9)).map(drop).or_else(|e| match e.kind() {
            // Nobody listens there, but the attempt went through.
            io::ErrorKind::ConnectionRefused => Ok(()),
            _ => Err(e),
        }),
        Attempt::File => std::fs::File::open("/proc/self/status").map(drop),
        Attempt::Program => std::process::Command::new("/proc/self/exe").arg("--version").output().map(drop),
        Attempt::Descriptor => {
            io::stdout().write_all(b"it can be used\n")?;
            io::stdout().flush()
        }
        Attempt::Memory => {
            let bytes = usize::try_from(limits.max_decoded_bytes).unwrap_or(usize::MAX).saturating_mul(4);
            Vec::<u8>::new().try_reserve_exact(bytes).map_err(io::Error::other)
        }
    }
}

/// Takes an image in. A file may be larger than this process may be; then the rest of it is read and forgotten.
fn read(stream: &UnixStream, bytes: u64) -> io::Result<Result<Vec<u8>, Undecodable>> {
    let mut image = Vec::new();
    if usize::try_from(bytes).ok().and_then(|bytes| image.try_reserve_exact(bytes).ok()).is_none() {
        io::copy(&mut stream.take(bytes), &mut io::sink())?;
        return Ok(Err(Undecodable(format!("over the decode limits: no memory for a file of {bytes} bytes"))));
    }
    if stream.take(bytes).read_to_end(&mut image)? as u64 == bytes {
        Ok(Ok(image))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn tell(mut stream: &UnixStream, decoded: &Decoded) -> io::Result<()> {
    let seen = decoded.seen;
    let taken = u32::try_from(decoded.frames.len()).map_err(io::Error::other)?;
    let format = seen.format.to_owned();
    send(stream, &Report::Seen { format, width: seen.width, height: seen.height, frames: seen.frames, taken })?;
    decoded.frames.iter().flatten().try_for_each(|pixels| stream.write_all(&pixels.data))
}

fn out_of_turn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message out of turn")
}

/// The worker keeps the memory's accounts. It takes what an image has back when the image is done, or asks anew.
struct Worker<'a> {
    stream: &'a UnixStream,
    is_asked: Cell<bool>,
}

impl Memory for Worker<'_> {
    fn take(&self, bytes: u64) -> Box<dyn Held + '_> {
        assert!(!self.is_asked.replace(true), "a decoder asks for memory while it has some");
        match send(self.stream, &Report::Need { bytes }).and_then(|()| receive(self.stream)) {
            Ok(Order::Granted) => Box::new(Asked(&self.is_asked)),
            // Nobody is there to decode for any more.
            _ => std::process::exit(1),
        }
    }
}

struct Asked<'a>(&'a Cell<bool>);

impl Held for Asked<'_> {}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
