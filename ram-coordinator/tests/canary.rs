//! A word in a sealed prompt is found nowhere in the coordinator: not in the memory of its process while it relays the
//! answer, nor in its log or its database. The same search finds a word that was said in the open, so it does search.
//!
//! Coordinator and provider are processes of their own. Linux, whose processes can be looked into.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod sealing;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ram_crypto::hpke::Hearing;
use ram_proto::blob::Blob;
use ram_proto::openai::sse;
use ram_proto::rest::{E2eEvent, E2eProviders};
use ram_proto::routes;
use serde_json::{Value, json};

use self::sealing::{Client, MODEL, words};

const AT_MOST: Duration = Duration::from_secs(120);
/// Said sealed, in each version, and in the open.
const SEALED: [&str; 2] = ["heron-canary-4471", "heron-canary-8120"];
const OPEN: &str = "magpie-canary-3390";

struct Processes {
    coordinator: Child,
    provider: Child,
    client: Client,
    folder: tempfile::TempDir,
    log: std::thread::JoinHandle<String>,
}

impl Processes {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ledger.db");
        let mut command = program(&database);
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        let mut coordinator = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(coordinator.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let address = loop {
            let line = lines.next().unwrap().unwrap();
            let said: Value = serde_json::from_str(&line).unwrap();
            log.push_str(&line);
            if let Some(address) = said["fields"]["addr"].as_str() {
                break address.to_owned();
            }
        };
        let log = std::thread::spawn(move || lines.map_while(Result::ok).fold(log, |log, line| log + &line));
        let key = ["keys", "create", "--name", "mine", "--credit", "1000", "--json"];
        let made = program(&database).args(key).output().unwrap();
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let key = made["key"].as_str().unwrap().to_owned();
        let base_url = format!("http://{address}");
        let test = std::env::current_exe().unwrap();
        let example = test.parent().and_then(Path::parent).unwrap().join("examples").join("network");
        let provider = Command::new(example)
            .args(["--coordinator", &base_url, "--as-provider", "opener"])
            .arg(folder.path().join("provider"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let processes = Self { coordinator, provider, client: Client { base_url, key }, folder, log };
        tokio::time::timeout(AT_MOST, processes.provider_is_here()).await.expect("no provider registered");
        processes
    }

    async fn provider_is_here(&self) {
        let url = format!("{}{}", self.client.base_url, routes::E2E_PROVIDERS);
        loop {
            let list: E2eProviders = reqwest::get(&url).await.unwrap().json().await.unwrap();
            if !list.providers.is_empty() {
                return;
            }
        }
    }

    /// How often each of these stands in the coordinator's memory.
    fn find(&self, texts: &[&str]) -> Vec<usize> {
        memory(self.coordinator.id()).iter().fold(vec![0; texts.len()], |mut found, bytes| {
            for (found, text) in found.iter_mut().zip(texts) {
                *found += bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count();
            }
            found
        })
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in [&mut self.provider, &mut self.coordinator] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn program(database: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ram-coordinator"));
    command.arg("--database").arg(database).env("RAM_LOG", "trace");
    command
}

/// All memory of a process that can be written to, each piece of it.
fn memory(pid: u32) -> Vec<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let piece = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (first, end) = range.split_once('-')?;
        let [first, end] = [first, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        rest.starts_with("rw").then_some((first, end))
    };
    let pieces = maps.lines().filter_map(piece);
    pieces
        .filter_map(|(first, end)| {
            let mut bytes = vec![0; usize::try_from(end - first).unwrap()];
            memory.seek(SeekFrom::Start(first)).unwrap();
            memory.read_exact(&mut bytes).ok().map(|()| bytes) // one may be gone meanwhile
        })
        .collect()
}

fn chat(canary: &str) -> Value {
    let message = json!({ "role": "user", "content": format!("What is the capital of France, {canary}?") });
    // It goes on until it is stopped.
    json!({ "model": MODEL, "messages": [message], "max_tokens": 2000, "logit_bias": { "1": -100 } })
}

/// The next event of a stream.
async fn event(response: &mut reqwest::Response, decoder: &mut sse::Decoder) -> String {
    loop {
        if let Some(event) = decoder.next_event() {
            return event.data;
        }
        let piece = tokio::time::timeout(AT_MOST, response.chunk()).await.unwrap().unwrap();
        decoder.push(&piece.expect("the stream goes on")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_word_of_a_sealed_exchange_is_in_the_coordinator() {
    let processes = Processes::start().await;
    let client = &processes.client;

    // Version 2, streamed: while boxes go through, and the words of some of them are known here.
    let (mut response, waiting) = client.ask(&chat(SEALED[0]).to_string(), true).await;
    assert_eq!(response.status(), 200);
    let (mut decoder, mut waiting, mut hearing) = (sse::Decoder::new(), Some(waiting), None::<Hearing>);
    let mut answer = String::new();
    while answer.len() < 40 {
        let event: E2eEvent = serde_json::from_str(&event(&mut response, &mut decoder).await).unwrap();
        if let Some(nonce) = event.output_nonce_b64 {
            hearing = Some(waiting.take().unwrap().hear(&nonce.to_array().unwrap()));
        }
        if let Some(sealed) = event.encrypted_chunk_b64 {
            answer += &words(&hearing.as_mut().unwrap().chunk(&sealed.to_bytes()).unwrap());
        }
    }
    assert_eq!(processes.find(&[SEALED[0], &answer[..24]]), [0, 0], "{answer}");
    drop(response);

    // Version 1.
    let offer = client.offer(1).await;
    let (prompt, waiting) = client.choose(&offer).seal_v1(SEALED[1].as_bytes()).unwrap();
    let submit = ram_proto::rest::E2eSubmit {
        job_id: offer.job_id,
        encrypted_prompt_b64: Blob::new(&prompt.sealed.ciphertext),
        prompt_nonce_b64: Some(Blob::new(&prompt.sealed.nonce)),
        client_public_key_b64: Blob::new(&prompt.client_key),
        stream: false,
    };
    assert_eq!(client.post(routes::E2E_SUBMIT, &submit).await.status(), 200);
    drop(waiting);

    // In the open, while the answer is written: the search finds it.
    let mut body = chat(OPEN);
    body["stream"] = json!(true);
    let mut response = client.post(routes::CHAT_COMPLETIONS, &body).await;
    event(&mut response, &mut sse::Decoder::new()).await;
    let found = processes.find(&[SEALED[0], SEALED[1], OPEN]);
    assert!(found[..2] == [0, 0] && found[2] > 0, "{found:?}");
    drop(response);

    let databases: Vec<PathBuf> = fs::read_dir(processes.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    assert!(!databases.is_empty());
    for path in databases {
        let bytes = fs::read(&path).unwrap();
        for canary in SEALED {
            let is_there = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
            assert!(!is_there, "{} holds {canary}", path.display());
        }
    }
    let mut processes = processes;
    processes.coordinator.kill().unwrap();
    let log = std::mem::replace(&mut processes.log, std::thread::spawn(String::new)).join().unwrap();
    assert!(log.contains(&offer.job_id.to_string()), "the job is told of");
    assert!(SEALED.iter().all(|canary| !log.contains(canary)));
}
