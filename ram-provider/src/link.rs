//! The socket to the coordinator: dials, frames, pings. Decides nothing.
//!
//! One [`Link`] is one socket. Its task ends with the socket, and the last thing it says is [`Heard::Down`]; a link
//! that is dropped says nothing more. [`run`](crate::run()) drives it for one node; a program of thousands of nodes
//! (`examples/sim_provider`) drives it by itself.

use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use ram_proto::control::{
    ControlError, Decoded, TO_PROVIDER_BYTES_MAX, ToCoordinator, ToProvider, decode, encode,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_tungstenite::tungstenite::{self, Message, protocol::WebSocketConfig};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config};

use crate::config::CoordinatorUrl;

/// Longest wait for TCP, TLS and the upgrade together.
const DIAL_MAX: Duration = Duration::from_secs(15);
/// How often a ping asks whether the coordinator still lives: half of the time below.
const PING_EVERY: Duration = Duration::from_secs(15);
/// A coordinator that says nothing for this long, not even a pong, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A coordinator that reads nothing for this long is gone.
const WRITE_MAX: Duration = Duration::from_secs(20);
/// Longest wait for the close handshake: whatever is lost then was said too late anyway.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Messages that may wait for the socket: seconds of chunks at full load. More means that it does not move.
const OUTGOING_MAX: usize = 4096;
/// Messages that may wait for the agent; then the socket is not read, and TCP slows the coordinator down.
const INCOMING_MAX: usize = 64;

/// What came of the socket.
#[derive(Debug)]
pub enum Heard {
    /// It stands.
    Up,
    /// The coordinator said this.
    Message(Decoded<ToProvider>),
    /// It is gone.
    Down(Lost),
}

/// Why a socket is gone, in words for an operator.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Lost(#[from] LinkError);

#[derive(Debug, thiserror::Error)]
enum LinkError {
    /// The world: it was closed, or never stood.
    #[error("{0}")]
    Socket(#[from] tungstenite::Error),
    /// The world: no certificates to check the coordinator's against.
    #[error("this system has no root certificates to check the coordinator's against")]
    NoRoots,
    /// The world: rustls has no protocol version in common with its own provider.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// The world: too slow.
    #[error("{0} took too long")]
    TimedOut(&'static str),
    /// The coordinator closed it.
    #[error("the coordinator closed the connection")]
    Closed,
    /// The coordinator sent what does not read.
    #[error("the coordinator is at fault: {0}")]
    Message(#[from] ControlError),
    /// The coordinator sent a binary frame, which no capability of ours allows.
    #[error("the coordinator is at fault: a binary frame")]
    Binary,
}

/// One socket, from dialling to its end.
#[derive(Debug)]
pub struct Link {
    outgoing: mpsc::Sender<ToCoordinator>,
    incoming: mpsc::Receiver<Heard>,
    is_stuck: bool,
    task: JoinHandle<()>,
}

impl Link {
    /// Dials, from a task of its own on the current tokio runtime.
    #[must_use]
    pub fn open(url: CoordinatorUrl) -> Self {
        let (outgoing, to_send) = mpsc::channel(OUTGOING_MAX);
        let (heard, incoming) = mpsc::channel(INCOMING_MAX);
        let task = tokio::spawn(async move {
            let end = live(&url, to_send, &heard).await.err().unwrap_or(LinkError::Closed);
            let _ = heard.send(Heard::Down(end.into())).await; // nobody listens once the link was dropped
        });
        Self { outgoing, incoming, is_stuck: false, task }
    }

    /// Puts a message in line for the socket. When the line is full the socket does not move: it is heard to be down.
    pub fn send(&mut self, message: ToCoordinator) {
        self.is_stuck |= matches!(self.outgoing.try_send(message), Err(mpsc::error::TrySendError::Full(_)));
    }

    /// The next thing that came of the socket. Cancel-safe.
    pub async fn heard(&mut self) -> Heard {
        if self.is_stuck {
            return Heard::Down(LinkError::TimedOut("sending").into());
        }
        self.incoming.recv().await.unwrap_or(Heard::Down(Lost(LinkError::Closed)))
    }

    /// Says what is in line, then closes; nothing more is heard. The task ends when it has; aborted, the socket is gone
    /// at once, as that of a killed process.
    #[must_use = "it says when the last words have left"]
    pub fn close(self) -> JoinHandle<()> {
        self.task // dropping `outgoing` ends the line, and with it the task
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn live(
    url: &CoordinatorUrl,
    mut to_send: mpsc::Receiver<ToCoordinator>,
    heard: &mpsc::Sender<Heard>,
) -> Result<(), LinkError> {
    let mut socket = timeout(DIAL_MAX, dial(url)).await.map_err(|_| LinkError::TimedOut("connecting"))??;
    let _ = heard.send(Heard::Up).await;
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_word = Instant::now();
    loop {
        let frame = tokio::select! {
            message = to_send.recv() => match message {
                Some(message) => Message::text(encode(&message)),
                None => return close(socket).await,
            },
            frame = socket.next() => {
                last_word = Instant::now();
                if let Some(message) = read(frame)? {
                    let _ = heard.send(Heard::Message(message)).await;
                }
                continue;
            }
            _ = ping.tick() => {
                if last_word.elapsed() > SILENCE_MAX {
                    return Err(LinkError::TimedOut("the coordinator's answer to a ping"));
                }
                Message::Ping(Default::default())
            }
        };
        timeout(WRITE_MAX, socket.send(frame)).await.map_err(|_| LinkError::TimedOut("sending"))??;
    }
}

async fn dial(url: &CoordinatorUrl) -> Result<Socket, LinkError> {
    let connector = if url.is_tls() { Connector::Rustls(tls()?) } else { Connector::Plain };
    let limits = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(TO_PROVIDER_BYTES_MAX))
        .max_frame_size(Some(TO_PROVIDER_BYTES_MAX));
    let nodelay = true; // a token must not wait for the acknowledgement of the one before it
    let (socket, _) =
        connect_async_tls_with_config(url.as_str(), Some(limits), nodelay, Some(connector)).await?;
    Ok(socket)
}

/// TLS by rustls and ring, against the system's own root certificates, so that an operator's own authority counts too.
fn tls() -> Result<Arc<ClientConfig>, LinkError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(LinkError::NoRoots);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn read(
    frame: Option<Result<Message, tungstenite::Error>>,
) -> Result<Option<Decoded<ToProvider>>, LinkError> {
    match frame.ok_or(LinkError::Closed)?? {
        Message::Text(text) => Ok(Some(decode(&text)?)),
        Message::Binary(_) => Err(LinkError::Binary),
        Message::Close(_) => Err(LinkError::Closed),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
    }
}

async fn close(mut socket: Socket) -> Result<(), LinkError> {
    timeout(CLOSE_MAX, socket.close(None)).await.map_err(|_| LinkError::TimedOut("closing"))??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_needs_nothing_but_root_certificates() {
        assert!(matches!(tls(), Ok(_) | Err(LinkError::NoRoots))); // a bare machine may have none
    }

    #[tokio::test]
    async fn a_coordinator_that_is_not_there_is_heard_to_be_down() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let mut link = Link::open(url);
        assert!(matches!(link.heard().await, Heard::Down(Lost(LinkError::Socket(_)))));
        assert!(matches!(link.heard().await, Heard::Down(_)), "and stays so");
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_does_not_answer_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut link = Link::open(url);
        let (_silent, _) = listener.accept().await.unwrap();
        assert!(matches!(link.heard().await, Heard::Down(Lost(LinkError::TimedOut("connecting")))));
    }

    #[tokio::test]
    async fn a_line_that_is_full_is_a_link_that_is_down() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut link = Link::open(url); // whose socket never stands, so that nothing leaves the line
        for _ in 0..=OUTGOING_MAX {
            link.send(ToCoordinator::Draining);
        }
        assert!(matches!(link.heard().await, Heard::Down(Lost(LinkError::TimedOut("sending")))));
    }
}
