//! The decoder process: it decodes one image at a time, on one thread, until its socket is closed.
//!
//! All it has is its socket, which is its standard input.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::confine::confine;
use super::protocol::{DecoderMessage, WorkerMessage, receive, send, unexpected_message};
use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
use crate::job::ImageInfo;
use crate::screen::decode::memory_budget::{MemoryBudget, MemoryHold, MemorySource};
use crate::screen::decode::{DecodeRequest, DecodeScratch, DecodedImage, DecodedView, decode_safely};
use crate::screen::error::Undecodable;

/// Serves the worker at the other end of standard input until that end is closed.
///
/// # Errors
/// When standard input is not such a socket, or a message is invalid.
pub(crate) fn serve() -> io::Result<()> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let WorkerMessage::Setup { limits } = receive(&stream)? else { return Err(unexpected_message()) };
    let mut scratch = DecodeScratch::new(&limits);
    warm_up(&limits, &mut scratch)?;
    let confinement = confine(&limits, &stream);
    send(&stream, &DecoderMessage::Ready { confinement })?;
    loop {
        let (bytes, geometries, mode) = match receive(&stream) {
            Ok(WorkerMessage::Image { bytes, geometries, mode }) => (bytes, geometries, mode),
            Ok(_) => return Err(unexpected_message()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        let decoded = match receive_file(&stream, bytes)? {
            ReceivedFile::Whole(file) => {
                let memory = WorkerMemory { stream: &stream, is_held: Cell::new(false) };
                let request = DecodeRequest { bytes: &file, geometries: &geometries, mode };
                decode_safely(&request, &limits, &memory, &mut scratch)
            }
            ReceivedFile::TooLarge => {
                Err(Undecodable(format!("over the decode limits: no memory for a file of {bytes} bytes")))
            }
        };
        match decoded {
            Ok(decoded) => send_image(&stream, &decoded)?,
            Err(Undecodable(reason)) => send(&stream, &DecoderMessage::Undecodable { reason })?,
        }
    }
}

/// Decodes a small image before the process is confined. Some libraries look up once what the processor can do, and on
/// ARM libjpeg-turbo reads a file for that.
fn warm_up(limits: &DecodeConfig, scratch: &mut DecodeScratch) -> io::Result<()> {
    let mut jpeg = io::Cursor::new(Vec::new());
    image::RgbImage::new(16, 16).write_to(&mut jpeg, image::ImageFormat::Jpeg).map_err(io::Error::other)?;
    let resize = Resize::Exact { width: 8, height: 8 };
    let geometry =
        Geometry { resize, filter: ResampleFilter::Bicubic, width: 8, height: 8, rounding: CropRounding::Down };
    let memory = MemoryBudget::new(limits.memory_bytes);
    // The configured limits may be so low that no image can be decoded, so that a failure is no error here.
    let request = DecodeRequest { bytes: jpeg.get_ref(), geometries: &[geometry], mode: DecodeMode::Exact };
    drop(decode_safely(&request, limits, &memory, scratch));
    Ok(())
}

/// Something that a confined process must not be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ForbiddenAction {
    /// Connect to an address.
    Network,
    /// Open a file.
    File,
    /// Run a program.
    Program,
    /// Use a descriptor that is not its socket.
    Descriptor,
    /// Allocate more memory than an image may take.
    Memory,
}

/// Confines this process and tries a forbidden action. It succeeds where nothing refuses the action; a refusal is an error,
/// or the end of the process.
///
/// # Errors
/// What refused the action.
pub(crate) fn try_forbidden(action: ForbiddenAction) -> io::Result<()> {
    let limits = DecodeConfig::default();
    confine(&limits, &io::stdin());
    match action {
        ForbiddenAction::Network => {
            std::net::TcpStream::connect(("127.0.0.1", 9)).map(drop).or_else(|e| match e.kind() {
                // No server listens there, but the attempt reached the network.
                io::ErrorKind::ConnectionRefused => Ok(()),
                _ => Err(e),
            })
        }
        ForbiddenAction::File => std::fs::File::open("/proc/self/status").map(drop),
        ForbiddenAction::Program => std::process::Command::new("/proc/self/exe").arg("--version").output().map(drop),
        ForbiddenAction::Descriptor => {
            io::stdout().write_all(b"the descriptor can be used\n")?;
            io::stdout().flush()
        }
        ForbiddenAction::Memory => {
            let bytes = usize::try_from(limits.max_decoded_bytes).unwrap_or(usize::MAX).saturating_mul(4);
            Vec::<u8>::new().try_reserve_exact(bytes).map_err(io::Error::other)
        }
    }
}

/// A file from the worker.
enum ReceivedFile {
    Whole(Vec<u8>),
    /// It needs more memory than this process may have. It was read to its end and dropped.
    TooLarge,
}

fn receive_file(stream: &UnixStream, bytes: u64) -> io::Result<ReceivedFile> {
    let mut file = Vec::new();
    if usize::try_from(bytes).ok().and_then(|bytes| file.try_reserve_exact(bytes).ok()).is_none() {
        io::copy(&mut stream.take(bytes), &mut io::sink())?;
        return Ok(ReceivedFile::TooLarge);
    }
    if stream.take(bytes).read_to_end(&mut file)? as u64 == bytes {
        Ok(ReceivedFile::Whole(file))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn send_image(mut stream: &UnixStream, decoded: &DecodedImage) -> io::Result<()> {
    let ImageInfo { format, width, height, frames } = decoded.info;
    let views = decoded.views.iter().map(DecodedView::hash).collect();
    let damage = decoded.damage.clone();
    send(stream, &DecoderMessage::Decoded { format: format.to_owned(), width, height, frames, damage, views })?;
    let mut pixels = decoded.views.iter().flat_map(|decoded| &decoded.pixels);
    pixels.try_for_each(|pixels| stream.write_all(&pixels.data))
}

/// Memory from the worker's budget. The worker takes an image's memory back when the image is done, or when it asks for
/// other memory.
struct WorkerMemory<'a> {
    stream: &'a UnixStream,
    is_held: Cell<bool>,
}

impl MemorySource for WorkerMemory<'_> {
    fn take(&self, bytes: u64) -> Box<dyn MemoryHold + '_> {
        assert!(!self.is_held.replace(true), "a decoder asks for memory while it holds some");
        match send(self.stream, &DecoderMessage::MemoryNeeded { bytes }).and_then(|()| receive(self.stream)) {
            Ok(WorkerMessage::MemoryGranted) => Box::new(WorkerMemoryHold(&self.is_held)),
            // The worker is gone.
            _ => std::process::exit(1),
        }
    }
}

struct WorkerMemoryHold<'a>(&'a Cell<bool>);

impl MemoryHold for WorkerMemoryHold<'_> {}

impl Drop for WorkerMemoryHold<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
