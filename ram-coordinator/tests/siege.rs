//! A gateway under siege: half-sent requests, bodies without end, header bombs, readers who do not read. Nothing is
//! timed; whoever behaves is simply served while the siege stands.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use fake::{AT_MOST, Network};
use futures::future::join_all;
use ram_proto::control::ToProvider;
use ram_proto::routes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Half-sent requests that stand open.
const HALVES: usize = 1000;
/// What the longest bodies of the siege have in bytes: ten times what is allowed.
const ENDLESS: usize = 80 << 20;

async fn open(network: &Network) -> TcpStream {
    TcpStream::connect(network.coordinator.addr).await.unwrap()
}

/// The status of an answer, as the first line tells it.
async fn status(socket: &mut TcpStream) -> Option<u16> {
    let mut line = [0; 12];
    timeout(AT_MOST, socket.read_exact(&mut line)).await.unwrap().ok()?;
    std::str::from_utf8(&line[9..]).ok()?.parse().ok()
}

/// A request's head up to its own headers, with the network's key.
fn head(network: &Network, more: &str) -> String {
    let Network { key, .. } = network;
    format!(
        "POST {} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {key}\r\n{more}",
        routes::CHAT_COMPLETIONS
    )
}

/// File handles that this process may have; both ends of each connection are in it.
fn files_allowed() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(256)
}

#[tokio::test]
async fn a_thousand_half_sent_requests_and_endless_bodies_keep_nobody_waiting() {
    let network = Network::start().await;
    let provider = network.provider(1).await;
    let serving = tokio::spawn(provider.serve(&["Paris"]));
    let kinds = [
        head(&network, ""),
        head(&network, "x-half: "),
        head(&network, "content-length: 100\r\n\r\n{\"model\":"),
        head(&network, "transfer-encoding: chunked\r\n\r\n5\r\n{\"mod"),
        String::new(),
    ];
    let mut halves = Vec::new();
    for number in 0..HALVES.min(files_allowed() / 2 - 100) {
        let mut socket = open(&network).await;
        socket.write_all(kinds[number % kinds.len()].as_bytes()).await.unwrap();
        halves.push(socket);
    }
    let endless = |chunked: bool| {
        let more = if chunked {
            "transfer-encoding: chunked".to_owned()
        } else {
            format!("content-length: {ENDLESS}")
        };
        let head = head(&network, &format!("{more}\r\n\r\n"));
        let opening = open(&network);
        async move {
            let mut socket = opening.await;
            socket.write_all(head.as_bytes()).await?;
            let page = "x".repeat(1 << 20);
            for _ in 0..ENDLESS >> 20 {
                let framed = if chunked { format!("{:x}\r\n{page}\r\n", page.len()) } else { page.clone() };
                socket.write_all(framed.as_bytes()).await?;
            }
            std::io::Result::Ok(status(&mut socket).await)
        }
    };
    let besieging = join_all((0..4).map(|number| endless(number % 2 == 0)));
    let served = join_all((0..20).map(|_| network.ask(json!({}))));
    let (told, served) = tokio::join!(besieging, served);
    for answer in served {
        assert_eq!(answer.unwrap().status(), 200);
    }
    for told in told {
        // Whoever sends all of it before reading hears why nothing came of it.
        assert_eq!(told.unwrap(), Some(413));
    }
    let asked = network.ask(json!({ "stream": true })).await.unwrap();
    assert!(asked.text().await.unwrap().contains("Paris"));
    drop(halves);
    serving.abort();
}

#[tokio::test]
async fn an_endless_body_under_a_bad_key_is_told_about_the_key() {
    let network = Network::start().await;
    let body = vec![b'x'; 32 << 20];
    let request = network.http.post(network.url(routes::CHAT_COMPLETIONS)).bearer_auth("nobodys").body(body);
    assert_eq!(request.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn who_dribbles_a_head_is_cut_off() {
    let network =
        Network::with(|config| config.gateway.head_within = std::time::Duration::from_secs(1)).await;
    let mut socket = open(&network).await;
    socket.write_all(head(&network, "x-half: ").as_bytes()).await.unwrap();
    let mut told = Vec::new();
    let ended = timeout(AT_MOST, socket.read_to_end(&mut told)).await.unwrap();
    assert!(ended.is_err() || told.is_empty() || told.starts_with(b"HTTP/1.1 408"));
}

#[tokio::test]
async fn header_bombs_are_refused_and_the_next_caller_is_served() {
    let network = Network::start().await;
    let many: String = (0..1000).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = format!("x-long: {}\r\n", "y".repeat(128 << 10));
    let path = format!("GET /{} HTTP/1.1\r\nhost: test\r\n\r\n", "y".repeat(128 << 10));
    for bomb in [head(&network, &many) + "\r\n", head(&network, &long) + "\r\n", path] {
        let mut socket = open(&network).await;
        // The rest of a bomb may meet a closed door.
        let _ = socket.write_all(bomb.as_bytes()).await;
        let told = status(&mut socket).await;
        assert!(matches!(told, None | Some(400 | 414 | 431)), "{told:?}");
    }
    assert_eq!(network.get(routes::HEALTH).await.status(), 200);
}

#[tokio::test]
async fn long_bodies_have_so_much_room_and_short_ones_always_pass() {
    let network = Network::with(|config| config.gateway.bodies_bytes_max = 4 << 20).await;
    let provider = network.provider(1).await;
    let serving = tokio::spawn(provider.serve(&["Paris"]));
    let content = "x".repeat(2 << 20);
    let long = json!({ "model": fake::LONG_MODEL, "messages": [{ "role": "user", "content": content }] });
    let refused = network.chat(long).send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.status(), 503);
    assert_eq!(network.ask(json!({})).await.unwrap().status(), 200);
    serving.abort();
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let network = Network::with(|config| {
        config.admin_listen = "127.0.0.1:0".parse().unwrap();
        config.gateway.write_stall = std::time::Duration::from_secs(1);
    })
    .await;
    let mut provider = network.provider(1).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(network.coordinator.addr).await.unwrap();
    let wish = json!({ "model": fake::LONG_MODEL, "max_tokens": 100_000, "stream": true });
    let body = fake::question(wish).to_string();
    let head = head(&network, &format!("content-length: {}\r\n\r\n", body.len()));
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    let mut run = provider.run().await;
    provider.accept(&run).await;
    let page = "x".repeat(64 << 10);
    let cancelled = loop {
        provider.write_tokens(&mut run, &page, 64).await;
        if let Some(heard) = provider.heard().await {
            break heard;
        }
    };
    assert_eq!(cancelled, ToProvider::Cancel { job: run.id, attempt: run.attempt });
    let metrics = format!("http://{}{}", network.coordinator.admin.as_ref().unwrap().0, routes::METRICS);
    let stalled = async || {
        let text = network.http.get(&metrics).send().await.unwrap().text().await.unwrap();
        text.lines().any(|line| line == "ram_stalled_connections_total 1")
    };
    timeout(AT_MOST, async { while !stalled().await {} }).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_readers_is_answered() {
    let network = Network::start().await;
    let _provider = network.provider(1).await;
    let ask = async || network.get(routes::PROVIDERS).await.json::<Value>().await.unwrap();
    let flood = join_all((0..200).map(|_| ask())).await;
    assert!(flood.iter().all(|list| list["providers"][0]["name"] == "fake-1"));
}
