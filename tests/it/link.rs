//! A TCP proxy in front of the broker or the database: a network that can go silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const PASS: u8 = 0;
const BLACK_HOLE: u8 = 1;
const NO_DELIVERIES: u8 = 2;

/// The proxy, and how it treats its connections, present and future.
pub struct Link {
    pub port: u16,
    mode: Arc<AtomicU8>,
}

impl Link {
    /// Listens in front of a service on this machine.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Self { port: listener.local_addr().unwrap().port(), mode: Arc::default() };
        let mode = Arc::clone(&link.mode);
        drop(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mode = Arc::clone(&mode);
                drop(tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    // When one side closes its connection, the other side's is closed too.
                    tokio::select! {
                        _ = requests(from_client, to_server, &mode) => {}
                        _ = answers(from_server, to_client, &mode) => {}
                    }
                }));
            }
        }));
        link
    }

    /// Stops passing anything on, and keeps the connections open.
    pub fn black_hole(&self) {
        self.mode.store(BLACK_HOLE, Ordering::SeqCst);
    }

    /// Passes on everything but AMQP deliveries, on the present connections.
    pub fn swallow_deliveries(&self) {
        self.mode.store(NO_DELIVERIES, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.mode.store(PASS, Ordering::SeqCst);
    }
}

async fn open(mode: &AtomicU8) {
    while mode.load(Ordering::SeqCst) == BLACK_HOLE {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: &AtomicU8) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        open(mode).await;
        to.write_all(&buffer[..n]).await?;
    }
}

/// As [`requests`], but frame by frame (AMQP 0-9-1, section 2.3.5) while deliveries are not passed on.
async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: &AtomicU8) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while mode.load(Ordering::SeqCst) != NO_DELIVERIES {
        let n = tokio::select! {
            n = from.read(&mut buffer) => n?,
            // The mode is looked at between two responses, so that what follows begins with a frame.
            () = tokio::time::sleep(Duration::from_millis(50)) => continue,
        };
        if n == 0 {
            return Ok(());
        }
        open(mode).await;
        to.write_all(&buffer[..n]).await?;
    }
    let mut delivering = false;
    loop {
        let mut frame = vec![0; 7];
        from.read_exact(&mut frame).await?;
        let size = u32::from_be_bytes(frame[3..7].try_into().unwrap()) as usize;
        frame.resize(7 + size + 1, 0);
        from.read_exact(&mut frame[7..]).await?;
        // A method frame, basic.deliver; its header and body follow in frames of types 2 and 3.
        let is_content = matches!(frame[0], 2 | 3);
        if !is_content {
            delivering = frame[0] == 1 && frame[7..11] == [0, 60, 0, 60];
        }
        if !delivering {
            to.write_all(&frame).await?;
        }
    }
}
