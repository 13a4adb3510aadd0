//! A hub on loopback: models out of memory, and whatever goes wrong on the way that a test asks for.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A hub that runs until the test's process ends.
#[derive(Clone)]
pub(crate) struct HubServer {
    address: SocketAddr,
    state: Arc<State>,
}

/// A request, as the hub saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    /// How often this method and path have been asked for, from 1.
    pub(crate) time: usize,
}

/// What the hub does instead of answering as it should.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "not every test needs every fault")]
pub(crate) enum Fault {
    /// An answer without a body.
    Status(u16, Vec<(&'static str, String)>),
    /// This listing.
    Listing(Value),
    /// The content, from the beginning, whatever was asked for.
    IgnoreRange,
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// Nothing more comes after so many bytes of the body, and the connection stays open.
    StallAfter(usize),
    /// The content with its last byte changed.
    Damage,
    /// The bytes behind those that were asked for, and a header that admits it.
    ShiftRange,
    /// A body that ends this many bytes early, and says that this is its length.
    Shorten(usize),
    /// Nothing, and the connection stays open.
    Silence,
}

type Plot = Box<dyn Fn(&Seen) -> Option<Fault> + Send + Sync>;

#[derive(Default)]
struct State {
    models: Mutex<HashMap<String, BTreeMap<String, Vec<u8>>>>,
    seen: Mutex<Vec<Seen>>,
    plot: Mutex<Option<Plot>>,
}

#[allow(dead_code, reason = "not every test needs every part")]
impl HubServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let state = Arc::clone(&server.state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                thread::spawn(move || state.answer(&stream));
            }
        });
        server
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Publishes a model, as another commit if there is one of this name.
    pub(crate) fn publish<'a>(&self, model: &str, files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) {
        let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        locked(&self.state.models).insert(model.to_owned(), files);
    }

    /// From now on this decides what goes wrong.
    pub(crate) fn plot(&self, plot: impl Fn(&Seen) -> Option<Fault> + Send + Sync + 'static) {
        *locked(&self.state.plot) = Some(Box::new(plot));
    }

    /// From now on nothing goes wrong.
    pub(crate) fn behave(&self) {
        *locked(&self.state.plot) = None;
    }

    /// All requests since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *locked(&self.state.seen))
    }

    /// The commit that `main` is.
    pub(crate) fn commit(&self, model: &str) -> String {
        commit(&locked(&self.state.models)[model])
    }

    /// The listing that it would give.
    pub(crate) fn listing(&self, model: &str) -> Value {
        listing(&locked(&self.state.models)[model])
    }
}

impl State {
    fn answer(&self, stream: &TcpStream) {
        let Some(seen) = self.read_request(stream) else { return };
        let fault = locked(&self.plot).as_ref().and_then(|plot| plot(&seen));
        locked(&self.seen).push(seen.clone());
        // The client may have gone: then it has what it wanted.
        let _ = match fault {
            Some(Fault::Silence) => wait_for_end(stream),
            Some(Fault::Status(status, headers)) => send(stream, &seen, status, &headers, b""),
            Some(Fault::Listing(listing)) => send(stream, &seen, 200, &[], listing.to_string().as_bytes()),
            fault => self.answer_well(stream, &seen, fault.as_ref()),
        };
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn answer_well(&self, stream: &TcpStream, seen: &Seen, fault: Option<&Fault>) -> std::io::Result<()> {
        let models = locked(&self.models);
        let api = seen.path.strip_prefix("/api/models/").and_then(|rest| rest.split_once("/revision/"));
        if let Some(files) = api.and_then(|(model, _)| models.get(model)) {
            return send(stream, seen, 200, &[], listing(files).to_string().as_bytes());
        }
        let found = seen.path[1..].split_once("/resolve/").and_then(|(model, rest)| {
            let (_, name) = rest.split_once('/')?;
            let files = models.get(model)?;
            Some((files.get(name)?.clone(), commit(files)))
        });
        drop(models);
        let Some((mut bytes, commit)) = found else {
            return send(stream, seen, 404, &[("x-error-code", "RepoNotFound".to_owned())], b"");
        };
        let mut headers =
            vec![("etag", format!("\"{}\"", etag(&seen.path, &bytes))), ("x-repo-commit", commit)];
        if matches!(fault, Some(Fault::Damage)) {
            *bytes.last_mut().unwrap() ^= 1;
        }
        let asked = seen.range.as_deref().and_then(|range| {
            let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let end = last.parse::<usize>().map_or(bytes.len(), |last| bytes.len().min(last + 1));
            Some((start.parse::<usize>().ok()?, end))
        });
        let shift = usize::from(matches!(fault, Some(Fault::ShiftRange)));
        let (status, body) = match asked {
            Some((start, end)) if !matches!(fault, Some(Fault::IgnoreRange)) => {
                match bytes.get(start + shift..end + shift) {
                    Some(part) if !part.is_empty() => {
                        let (first, last) = (start + shift, end + shift - 1);
                        headers.push(("content-range", format!("bytes {first}-{last}/{}", bytes.len())));
                        (206, part)
                    }
                    _ => (416, &bytes[..0]),
                }
            }
            _ => (200, &bytes[..]),
        };
        let body = match fault {
            Some(Fault::Shorten(by)) => &body[..body.len().saturating_sub(*by)],
            _ => body,
        };
        match fault {
            Some(Fault::CutAfter(length) | Fault::StallAfter(length)) => {
                let head = head(status, &headers, body.len());
                let mut stream = stream;
                stream.write_all(head.as_bytes())?;
                stream.write_all(&body[..body.len().min(*length)])?;
                if matches!(fault, Some(Fault::StallAfter(_))) {
                    wait_for_end(stream)?;
                }
                Ok(())
            }
            _ => send(stream, seen, status, &headers, body),
        }
    }

    fn read_request(&self, stream: &TcpStream) -> Option<Seen> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let first = lines.next()?;
        let (method, rest) = first.split_once(' ')?;
        let target = rest.split(' ').next()?;
        let headers: HashMap<String, String> = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| {
                line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            })
            .collect();
        let path = target.split('?').next()?.to_owned();
        let same = |seen: &&Seen| seen.method == method && seen.path == path;
        let time = locked(&self.seen).iter().filter(same).count() + 1;
        Some(Seen {
            method: method.to_owned(),
            path,
            range: headers.get("range").cloned(),
            authorization: headers.get("authorization").cloned(),
            time,
        })
    }
}

/// Waits until the client hangs up.
fn wait_for_end(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.read(&mut [0]).map(drop)
}

fn send(
    mut stream: &TcpStream,
    seen: &Seen,
    status: u16,
    headers: &[(&'static str, String)],
    body: &[u8],
) -> std::io::Result<()> {
    stream.write_all(head(status, headers, body.len()).as_bytes())?;
    if seen.method == "HEAD" { Ok(()) } else { stream.write_all(body) }
}

fn head(status: u16, headers: &[(&'static str, String)], length: usize) -> String {
    let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// What the hub calls a file's content: weights lie in its store of large files, the rest in git.
pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    if name.ends_with(".safetensors") { hex(&Sha256::digest(bytes)) } else { git_hash(bytes) }
}

fn listing(files: &BTreeMap<String, Vec<u8>>) -> Value {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let (size, hash) = (bytes.len(), etag(name, bytes));
        if name.ends_with(".safetensors") {
            json!({ "rfilename": name, "size": size, "blobId": git_hash(b"pointer"),
                    "lfs": { "sha256": hash, "size": size, "pointerSize": 130 } })
        } else {
            json!({ "rfilename": name, "size": size, "blobId": hash })
        }
    };
    json!({ "id": "x", "sha": commit(files), "private": false, "siblings": files.iter().map(sibling).collect::<Vec<_>>() })
}

fn commit(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hash = Sha1::new();
    for (name, bytes) in files {
        hash.update(name);
        hash.update(bytes);
    }
    hex(&hash.finalize())
}

fn git_hash(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
