//! A TCP proxy in front of the object store that breaks the responses for some keys.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How many bytes of a broken response arrive: the head and the beginning of the body.
const BYTES_BEFORE_BREAK: usize = 1_500;

/// Starts a proxy in front of `endpoint` (`http://host:port`) and returns its endpoint. If the path of a request contains
/// `/cut`, the connection is closed in the middle of the response. If it contains `/stall`, the response stops there and
/// the connection stays open.
pub async fn start(endpoint: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let behind = endpoint.trim_start_matches("http://").to_owned();
    drop(tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let behind = behind.clone();
            drop(tokio::spawn(async move {
                // Either side may close its connection at any time.
                drop(pass(client, &behind).await);
            }));
        }
    }));
    address
}

async fn pass(mut client: TcpStream, behind: &str) -> std::io::Result<()> {
    let mut server = TcpStream::connect(behind).await?;
    let (mut request, mut response) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut broken: Option<(bool, usize)> = None;
    loop {
        tokio::select! {
            n = client.read(&mut request) => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                let head = String::from_utf8_lossy(&request[..n]);
                let path = head.lines().next().unwrap_or_default();
                broken = (path.contains("/cut") || path.contains("/stall")).then(|| (path.contains("/cut"), BYTES_BEFORE_BREAK));
                server.write_all(&request[..n]).await?;
            }
            n = server.read(&mut response) => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                match &mut broken {
                    None => client.write_all(&response[..n]).await?,
                    Some((cut, left)) => {
                        let through = n.min(*left);
                        client.write_all(&response[..through]).await?;
                        *left -= through;
                        if *left == 0 && *cut {
                            return Ok(());
                        }
                        if *left == 0 {
                            // Open and silent, until the client closes the connection.
                            while client.read(&mut request).await? > 0 {}
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}
