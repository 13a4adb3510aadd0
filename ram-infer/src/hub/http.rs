//! One request to a hub: redirects followed by hand, refusals told apart, silence ended.
//!
//! The hub answers a request for a large file with a redirect to another host, and says in that first answer what the
//! file is (`X-Linked-Etag`, `X-Linked-Size`, `X-Repo-Commit`). So redirects are followed here and not in the client:
//! the first answer's headers are kept, and the token goes to the hub's own origin alone.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ram_core::id::ModelId;
use ram_core::units::Bytes;
use ureq::http::{HeaderMap, Method, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, Proxy};

use super::listing::{Content, Entry, LISTING_BYTES_MAX};
use super::{HubConfig, HubError, Token};

/// The hub redirects once to its store, a renamed model once more.
const REDIRECTS_MAX: usize = 5;
/// Longest wait that a busy hub is granted.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const USER_AGENT: &str = concat!("ram-infer/", env!("CARGO_PKG_VERSION"));

/// A client of one hub.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
    endpoint: String,
    /// Scheme and authority of the endpoint, the only place where the token goes.
    origin: String,
    token: Option<Token>,
}

/// What a request was for, as errors name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) model: &'a ModelId,
    /// The file; `None` for the listing.
    pub(super) file: Option<&'a str>,
}

/// An answer with a body that is still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) host: String,
    pub(super) status: u16,
    headers: HeaderMap,
    body: Body,
}

impl Http {
    /// A client; nothing is sent yet.
    pub(super) fn new(config: &HubConfig) -> Self {
        let roots = rustls_native_certs::load_native_certs().certs; // one that cannot be read may never be needed
        let roots: Vec<_> = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let silence = Some(config.patience.silence);
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(if config.system_proxy { Proxy::try_from_env() } else { None })
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(USER_AGENT)
            .accept_encoding("identity") // the bytes are hashed as they are stored
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_send_request(silence)
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .build()
            .new_agent();
        let endpoint = config.endpoint.as_str().to_owned();
        let origin = endpoint.parse().ok().and_then(|uri: Uri| origin(&uri)).unwrap_or_default();
        Self { agent, endpoint, origin, token: config.token.clone() }
    }

    /// What the hub says of a model's `main`, as JSON.
    ///
    /// # Errors
    /// [`HubError`], of every kind but those of disks.
    pub(super) fn listing(&self, model: &ModelId, revision: &str) -> Result<Vec<u8>, HubError> {
        let url = format!("{}/api/models/{model}/revision/{revision}?blobs=true", self.endpoint);
        let answer = self.follow(&Method::GET, url, None, Wanted { model, file: None })?;
        let host = answer.host.clone();
        let mut json = Vec::new();
        let mut body = answer.body().take(LISTING_BYTES_MAX + 1);
        body.read_to_end(&mut json).map_err(|error| broken(&host, error))?;
        if json.len() as u64 > LISTING_BYTES_MAX {
            return Err(HubError::answer(format!("a listing of more than {LISTING_BYTES_MAX} bytes")));
        }
        Ok(json)
    }

    /// Size and content of a file that the listing does not tell.
    ///
    /// # Errors
    /// As [`Http::listing`].
    pub(super) fn head(
        &self,
        model: &ModelId,
        commit: &str,
        entry: &Entry,
    ) -> Result<(Bytes, Content), HubError> {
        let wanted = Wanted { model, file: Some(&entry.name) };
        let answer = self.follow(&Method::HEAD, self.file_url(wanted, commit), None, wanted)?;
        let told = |name: &str| answer.header(name);
        let etag = told("x-linked-etag").or_else(|| told("etag"));
        let etag = etag.ok_or_else(|| HubError::answer(format!("no ETag of `{}`", entry.name)))?;
        let size =
            told("x-linked-size").or_else(|| told("content-length")).and_then(|text| text.parse().ok());
        let size = size.map(Bytes::new).or(entry.size);
        let size = size.ok_or_else(|| HubError::answer(format!("no size of `{}`", entry.name)))?;
        Ok((size, Content::from_etag(etag)?))
    }

    /// A file from the byte `start` on. Status 206 says that the answer begins there, 200 that it begins at 0, and 416
    /// that there is nothing from there on.
    ///
    /// # Errors
    /// As [`Http::listing`].
    pub(super) fn file(&self, wanted: Wanted<'_>, commit: &str, start: Bytes) -> Result<Answer, HubError> {
        let range = (start > Bytes::ZERO).then(|| format!("bytes={}-", start.get()));
        self.follow(&Method::GET, self.file_url(wanted, commit), range.as_deref(), wanted)
    }

    /// Some bytes of a file of this size, which is not empty and neither are they: the answer is of just them.
    ///
    /// # Errors
    /// As [`Http::listing`]; [`HubError::NoRanges`] when all of it comes instead, and [`HubError::WrongRange`] when
    /// others do.
    pub(super) fn span(
        &self,
        wanted: Wanted<'_>,
        commit: &str,
        span: Range<u64>,
        size: Bytes,
    ) -> Result<Answer, HubError> {
        let asked = format!("{}-{}", span.start, span.end.saturating_sub(1));
        let range = format!("bytes={asked}");
        let answer = self.follow(&Method::GET, self.file_url(wanted, commit), Some(&range), wanted)?;
        let told = answer.header("content-range").and_then(|told| told.strip_prefix("bytes "));
        let (given, of) = told.and_then(|told| told.split_once('/')).unwrap_or_default();
        match answer.status {
            206 if given == asked && (of == "*" || of.parse() == Ok(size.get())) => Ok(answer),
            200 if span == (0..size.get()) => Ok(answer),
            200 => Err(HubError::NoRanges { host: answer.host }),
            _ => Err(HubError::WrongRange { file: wanted.file.unwrap_or_default().to_owned() }),
        }
    }

    fn file_url(&self, wanted: Wanted<'_>, commit: &str) -> String {
        let file = percent_encoded(wanted.file.unwrap_or_default());
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, wanted.model)
    }

    /// Asks, and asks again where it is sent to. A `HEAD` ends at the first answer that names the content.
    fn follow(
        &self,
        method: &Method,
        mut url: String,
        range: Option<&str>,
        wanted: Wanted<'_>,
    ) -> Result<Answer, HubError> {
        for _ in 0..=REDIRECTS_MAX {
            let uri: Uri = url.parse().map_err(|_| HubError::BadRedirect { problem: "to no address" })?;
            let answer = self.ask(method, &uri, range)?;
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                let is_own = origin(&uri).is_some_and(|it| it == self.origin);
                return self.judge(answer, range.is_some(), wanted, is_own);
            }
            if method == Method::HEAD && answer.header("x-linked-etag").is_some() {
                return Ok(answer);
            }
            url = redirected(&uri, answer.header("location"))?;
        }
        Err(HubError::BadRedirect { problem: "without an end" })
    }

    fn ask(&self, method: &Method, uri: &Uri, range: Option<&str>) -> Result<Answer, HubError> {
        let host = uri.authority().map_or_else(String::new, |authority| authority.as_str().to_owned());
        let mut request = match *method {
            Method::HEAD => self.agent.head(uri.clone()),
            _ => self.agent.get(uri.clone()),
        };
        if let Some(token) = &self.token
            && origin(uri).is_some_and(|it| it == self.origin)
        {
            request = request.header(header::AUTHORIZATION, token.bearer());
        }
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let (head, body) = request.call().map_err(|error| broken(&host, error))?.into_parts();
        Ok(Answer { host, status: head.status.as_u16(), headers: head.headers, body })
    }

    /// Tells success from refusal, and whose it is.
    fn judge(
        &self,
        answer: Answer,
        ranged: bool,
        wanted: Wanted<'_>,
        is_own: bool,
    ) -> Result<Answer, HubError> {
        let model = || wanted.model.clone();
        let what = || wanted.file.map_or_else(|| wanted.model.to_string(), str::to_owned);
        let code = answer.header("x-error-code").unwrap_or_default();
        let status = answer.status;
        Err(match StatusCode::from_u16(status).unwrap_or_default() {
            found if found.is_success() => return Ok(answer),
            StatusCode::RANGE_NOT_SATISFIABLE if ranged => return Ok(answer),
            // A signed address of the hub's store has expired: the hub gives another one.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !is_own => answer.busy(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if code == "GatedRepo" => {
                HubError::Gated { model: model(), endpoint: self.endpoint.clone() }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                HubError::Unauthorised { model: model(), with_token: self.token.is_some() }
            }
            StatusCode::NOT_FOUND if wanted.file.is_none() || code == "RepoNotFound" => {
                HubError::NotFound { model: model() }
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => answer.busy(),
            found if found.is_server_error() => answer.busy(),
            _ => HubError::Refused { what: what(), status },
        })
    }
}

impl Answer {
    /// A header of it, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Where a partial answer begins, by its `Content-Range: bytes START-END/SIZE`.
    pub(super) fn range_start(&self) -> Option<Bytes> {
        let range = self.header("content-range")?.strip_prefix("bytes ")?;
        range.split_once('-')?.0.parse().ok().map(Bytes::new)
    }

    /// The body, as it comes.
    pub(super) fn body(self) -> impl Read {
        self.body.into_reader()
    }

    fn busy(&self) -> HubError {
        let retry_after = self.header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
        let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        HubError::Busy { host: self.host.clone(), status: self.status, retry_after }
    }
}

/// A connection that failed. The address is left out of it, for a signed one is a key.
pub(super) fn broken(host: &str, error: impl fmt::Display) -> HubError {
    HubError::Broken { host: host.to_owned(), problem: error.to_string() }
}

/// Where a redirect leads.
fn redirected(from: &Uri, location: Option<&str>) -> Result<String, HubError> {
    let bad = |problem| HubError::BadRedirect { problem };
    let location = location.ok_or_else(|| bad("to nowhere"))?;
    let scheme = from.scheme_str().unwrap_or_default();
    let url = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(from).unwrap_or_default())
    } else {
        location.to_owned()
    };
    let to: Uri = url.parse().map_err(|_| bad("to no address"))?;
    match to.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if scheme == "http" => Ok(url),
        Some("http") => Err(bad("from an encrypted address to an open one")),
        _ => Err(bad("to no address")),
    }
}

/// Scheme and authority, with the port spelled out.
fn origin(uri: &Uri) -> Option<String> {
    let scheme = uri.scheme_str()?;
    let port = uri.port_u16().or(match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    })?;
    let host = uri.host()?.to_ascii_lowercase();
    Some(format!("{scheme}://{host}:{port}"))
}

/// A path in an address: all but letters, digits, `-._~` and `/` as `%XX` (RFC 3986, section 2.3).
fn percent_encoded(path: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    path.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn a_redirect_is_followed_within_and_beyond_the_host_but_never_out_of_encryption() {
        let from = uri("https://hub.example/a/b");
        let to = |location| redirected(&from, Some(location));
        assert_eq!(to("/c?d=1").unwrap(), "https://hub.example:443/c?d=1");
        assert_eq!(to("//store.example/x").unwrap(), "https://store.example/x");
        assert_eq!(to("https://store.example/x").unwrap(), "https://store.example/x");
        for bad in ["http://store.example/x", "ftp://x/y", "", "x y"] {
            assert!(matches!(to(bad), Err(HubError::BadRedirect { .. })), "{bad:?}");
        }
        assert!(redirected(&from, None).is_err());
        assert!(redirected(&uri("http://127.0.0.1:1/a"), Some("http://127.0.0.1:2/b")).is_ok());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a, b| origin(&uri(a)) == origin(&uri(b));
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(!same("https://hub.example/", "http://hub.example/"));
        assert!(!same("https://hub.example/", "https://hub.example:8443/"));
        assert!(!same("https://hub.example/", "https://hub.example.evil/"));
    }

    #[test]
    fn a_path_is_encoded_byte_by_byte() {
        assert_eq!(percent_encoded("a/b c#?ä.json"), "a/b%20c%23%3F%C3%A4.json");
    }
}
