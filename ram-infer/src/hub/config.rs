//! Which hub, as whom, into which cache: values, and the variables that the hub's own tools read them from.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ureq::http::Uri;

use super::HubError;

/// The hub when no other is named.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Longest token: a hub's have some forty characters.
const TOKEN_BYTES_MAX: u64 = 1024;

/// Which hub, as whom, into which cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub.
    pub endpoint: Endpoint,
    /// Who asks; `None` is a stranger, who may read what is public.
    pub token: Option<Token>,
    /// The cache's folder, which is made if need be.
    pub cache: PathBuf,
    /// Whether the hub may not be asked: only what is in the cache counts.
    pub offline: bool,
    /// Whether requests go through the proxy that `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name.
    pub system_proxy: bool,
    /// How long is waited, and how often tried.
    pub patience: Patience,
}

/// How long is waited for a hub, and how often it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Longest silence: without a connection, without an answer, or amid a file.
    pub silence: Duration,
    /// Tries in a row that may bring nothing, before that is told.
    pub tries: NonZeroU32,
    /// Wait before the second try; it doubles with each further one, up to a minute.
    pub first_wait: Duration,
}

impl Default for Patience {
    /// 20 seconds of silence; 5 tries within a quarter of a minute.
    fn default() -> Self {
        let tries = NonZeroU32::new(5).expect("five is not zero");
        Self { silence: Duration::from_secs(20), tries, first_wait: Duration::from_secs(1) }
    }
}

impl HubConfig {
    /// The public hub, as a stranger, into this cache.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Endpoint::default(),
            token: None,
            cache: cache.into(),
            offline: false,
            system_proxy: false,
            patience: Patience::default(),
        }
    }

    /// What these variables say, as the hub's own tools read them: `HF_ENDPOINT`, `HF_TOKEN` or else the file of
    /// `HF_TOKEN_PATH` (by default `token` in `HF_HOME`), the cache by [`cache_dir`], `HF_HUB_OFFLINE`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`.
    ///
    /// # Errors
    /// [`HubError::BadEndpoint`], [`HubError::BadToken`], [`HubError::NoCache`], and [`HubError::Disk`] when the
    /// token's file is there and cannot be read.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let text = |name: &str| set(&variable, name).and_then(|value| value.into_string().ok());
        let is_on = |name: &str| {
            text(name)
                .is_some_and(|value| matches!(&*value.to_ascii_uppercase(), "1" | "ON" | "YES" | "TRUE"))
        };
        let token = match text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
            _ if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            Some(token) => Some(token.trim().parse()?),
            None => {
                let file = path(&variable, "HF_TOKEN_PATH")
                    .or_else(|| hub_home(&variable).map(|home| home.join("token")));
                file.map_or(Ok(None), |file| token_in(&file))?
            }
        };
        Ok(Self {
            endpoint: text("HF_ENDPOINT").map_or_else(|| Ok(Endpoint::default()), |text| text.parse())?,
            token,
            cache: cache_dir(&variable).ok_or(HubError::NoCache)?,
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            system_proxy: true,
            patience: Patience::default(),
        })
    }
}

/// The cache's folder, as the hub's own tools find it: `HF_HUB_CACHE`, `hub` in `HF_HOME`, `huggingface/hub` in
/// `XDG_CACHE_HOME`, `.cache/huggingface/hub` in the user's home.
#[must_use]
pub fn cache_dir(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    path(&variable, "HF_HUB_CACHE")
        .or_else(|| path(&variable, "HUGGINGFACE_HUB_CACHE"))
        .or_else(|| hub_home(&variable).map(|home| home.join("hub")))
}

/// The folder of everything that the hub's tools keep.
fn hub_home(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    path(variable, "HF_HOME")
        .or_else(|| path(variable, "XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| path(variable, "HOME").map(|home| home.join(".cache/huggingface")))
}

/// A variable, unless it is empty.
fn set(variable: &impl Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    variable(name).filter(|value| !value.is_empty())
}

/// A variable that names a path, where `~/` is the user's home.
fn path(variable: &impl Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(set(variable, name)?);
    match (path.strip_prefix("~"), set(variable, "HOME")) {
        (Ok(rest), Some(home)) => Some(Path::new(&home).join(rest)),
        _ => Some(path),
    }
}

/// The token that a file holds; `None` when there is no such file, or nothing in it.
fn token_in(file: &Path) -> Result<Option<Token>, HubError> {
    match fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.len() > TOKEN_BYTES_MAX => return Err(HubError::BadToken),
        Err(error) => return Err(HubError::disk(file)(error)),
        Ok(_) => {}
    }
    let text = fs::read_to_string(file).map_err(HubError::disk(file))?;
    Some(text.trim()).filter(|text| !text.is_empty()).map(str::parse).transpose()
}

/// Where a hub answers: `https://host`, with a path where a mirror needs one; `http://` for one of one's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// The address, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Endpoint {
    /// The public hub.
    fn default() -> Self {
        Self(DEFAULT_ENDPOINT.to_owned())
    }
}

impl FromStr for Endpoint {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let text = text.trim().trim_end_matches('/');
        let uri: Uri = text.parse().map_err(|_| HubError::BadEndpoint)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        // A password in an address would end in logs.
        let host = uri.authority().filter(|it| !it.host().is_empty() && !it.as_str().contains('@'));
        if !is_http || host.is_none() || uri.query().is_some() {
            return Err(HubError::BadEndpoint);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asks a hub. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The header's value: `Bearer …`.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl FromStr for Token {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_word || text.len() as u64 > TOKEN_BYTES_MAX {
            return Err(HubError::BadToken);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<HubConfig, HubError> {
        HubConfig::from_environment(|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_variables_are_those_of_the_hubs_own_tools() {
        let config = from(&[("HOME", "/u")]).unwrap();
        assert_eq!(config.endpoint.as_str(), "https://huggingface.co");
        assert_eq!(config.cache, Path::new("/u/.cache/huggingface/hub"));
        assert!(!config.offline && config.token.is_none());

        let check = |variables: &[(&str, &str)], cache: &str| {
            assert_eq!(from(variables).unwrap().cache, Path::new(cache));
        };
        check(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/u")], "/c/huggingface/hub");
        check(&[("HF_HOME", "~/hf"), ("HOME", "/u"), ("HF_HUB_CACHE", "")], "/u/hf/hub");
        check(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub")], "/hub");
        assert_eq!(from(&[]), Err(HubError::NoCache));

        let offline = |value| from(&[("HOME", "/u"), ("HF_HUB_OFFLINE", value)]).unwrap().offline;
        assert!(offline("1") && offline("true") && !offline("0") && !offline("no"));
    }

    #[test]
    fn a_token_comes_from_its_variable_or_its_file_and_is_never_shown() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = home.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", hf_home)]).unwrap().token, None);
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let bearer = |variables: &[(&str, &str)]| from(variables).unwrap().token.map(|it| it.bearer());
        assert_eq!(bearer(&[("HF_HOME", hf_home)]).as_deref(), Some("Bearer hf_file"));
        let both = [("HF_HOME", hf_home), ("HF_TOKEN", " hf_own ")];
        assert_eq!(bearer(&both).as_deref(), Some("Bearer hf_own"));
        assert!(!format!("{:?}", from(&both)).contains("hf_own"));
        let none = [("HF_HOME", hf_home), ("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(bearer(&none), None);
        assert_eq!(from(&[("HF_HOME", hf_home), ("HF_TOKEN", "a b")]), Err(HubError::BadToken));
        fs::write(home.path().join("token"), "\n").unwrap();
        assert_eq!(bearer(&[("HF_HOME", hf_home)]), None);
    }

    #[test]
    fn an_endpoint_is_an_address_without_a_password() {
        for (good, kept) in [
            ("https://hub.example/", "https://hub.example"),
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("https://mirror.example/api/hf", "https://mirror.example/api/hf"),
        ] {
            assert_eq!(good.parse::<Endpoint>().unwrap().as_str(), kept);
        }
        for bad in ["", "hub.example", "ftp://hub.example", "https://u:p@hub.example", "https://h/?a=b"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(HubError::BadEndpoint), "{bad:?}");
        }
    }
}
