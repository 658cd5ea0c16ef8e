//! A TCP proxy of our own before the object store, which spoils the answers for chosen keys.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a spoilt answer that still arrive: the head and the beginning of the body.
const THROUGH: usize = 1_500;

/// Starts a proxy before `endpoint` (`http://host:port`) and returns its own endpoint. An answer to a request whose path
/// holds `/cut` is closed in the middle; one whose path holds `/stall` goes silent there.
pub async fn start(endpoint: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap());
    let behind = endpoint.trim_start_matches("http://").to_owned();
    drop(tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let behind = behind.clone();
            drop(tokio::spawn(async move {
                // A connection that either side closes ends here; that is what the tests are about.
                drop(pass(client, &behind).await);
            }));
        }
    }));
    own
}

async fn pass(mut client: TcpStream, behind: &str) -> std::io::Result<()> {
    let mut server = TcpStream::connect(behind).await?;
    let (mut request, mut answer) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut spoilt: Option<(bool, usize)> = None;
    loop {
        tokio::select! {
            n = client.read(&mut request) => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                let head = String::from_utf8_lossy(&request[..n]);
                let path = head.lines().next().unwrap_or_default();
                spoilt = (path.contains("/cut") || path.contains("/stall")).then(|| (path.contains("/cut"), THROUGH));
                server.write_all(&request[..n]).await?;
            }
            n = server.read(&mut answer) => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                match &mut spoilt {
                    None => client.write_all(&answer[..n]).await?,
                    Some((cut, left)) => {
                        let through = n.min(*left);
                        client.write_all(&answer[..through]).await?;
                        *left -= through;
                        if *left == 0 && *cut {
                            return Ok(());
                        }
                        if *left == 0 {
                            // Open and silent, until the client has had enough.
                            while client.read(&mut request).await? > 0 {}
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}
