//! Where others dial this node to hold a model with it: as its operator says, or else as this machine sees itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

#[cfg(feature = "iroh")]
use ram_pipeline::link::iroh::Relay;
use ram_proto::control::shard::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, Addresses};
use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::http::Uri;

use super::{ConfigError, ProviderConfig};

/// An address that another machine can dial: `HOST:PORT`, the host a name or a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DialAddress(String);

/// Why a text is no address to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address for other machines is HOST:PORT, such as `studio.example:7070`")]
pub struct DialAddressError;

impl FromStr for DialAddress {
    type Err = DialAddressError;

    fn from_str(text: &str) -> Result<Self, DialAddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(DialAddressError)?;
        let is_host = match host.strip_prefix('[') {
            Some(number) => number.strip_suffix(']').is_some_and(|number| number.parse::<Ipv6Addr>().is_ok()),
            None => !host.is_empty() && !host.contains([':', '/', '@']),
        };
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_short = Addresses::new(vec![text.to_owned()]).is_ok();
        if is_host && is_port && is_short { Ok(Self(text.to_owned())) } else { Err(DialAddressError) }
    }
}

impl fmt::Display for DialAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for DialAddress {
    type Error = DialAddressError;

    fn try_from(text: String) -> Result<Self, DialAddressError> {
        text.parse()
    }
}

impl From<DialAddress> for String {
    fn from(address: DialAddress) -> Self {
        address.0
    }
}

/// A relay of one's own, for nodes behind address translation: `https://HOST` or `http://HOST`, with a port and a path
/// if need be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelayUrl(String);

/// Why a text is no relay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a relay is a URL such as `https://relay.example`")]
pub struct RelayUrlError;

impl FromStr for RelayUrl {
    type Err = RelayUrlError;

    fn from_str(text: &str) -> Result<Self, RelayUrlError> {
        let url: Uri = text.parse().map_err(|_| RelayUrlError)?;
        let is_web = matches!(url.scheme_str(), Some("http" | "https"));
        let is_host = url.authority().is_some_and(|at| !at.host().is_empty() && !at.as_str().contains('@'));
        // Others are told of it with a word before it.
        let is_short = text.len() <= RELAY_BYTES_MAX;
        let url = Self(text.to_owned());
        #[cfg(feature = "iroh")]
        url.0.parse::<Relay>().map_err(|_| RelayUrlError)?;
        if is_web && is_host && is_short { Ok(url) } else { Err(RelayUrlError) }
    }
}

#[cfg(feature = "iroh")]
impl RelayUrl {
    /// The relay that is there.
    pub(crate) fn relay(&self) -> Relay {
        self.0.parse().expect("it was one when the text was read")
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RelayUrl {
    type Error = RelayUrlError;

    fn try_from(url: String) -> Result<Self, RelayUrlError> {
        url.parse()
    }
}

impl From<RelayUrl> for String {
    fn from(url: RelayUrl) -> Self {
        url.0
    }
}

/// Longest URL of a relay: that of an address, less what stands before it and a slash behind it.
const RELAY_BYTES_MAX: usize = ADDRESS_BYTES_MAX - 8;

/// Checks what belongs together of the settings for shards.
pub(super) fn check(config: &ProviderConfig) -> Result<(), ConfigError> {
    let ProviderConfig { shards, shards_at, shards_iroh, shards_relays, .. } = config;
    if shards_at.len() > ADDRESSES_MAX {
        return Err(ConfigError::TooManyAddresses { given: shards_at.len() });
    }
    if shards_relays.len() > RELAYS_MAX {
        return Err(ConfigError::TooManyRelays { given: shards_relays.len() });
    }
    if !shards_relays.is_empty() && shards_iroh.is_none() {
        return Err(ConfigError::Needs { given: "--shards-relay", needs: "--shards-iroh" });
    }
    if shards_iroh.is_some() && !cfg!(feature = "iroh") {
        return Err(ConfigError::NoIroh);
    }
    if shards_iroh.is_some() && shards.is_none() {
        return Err(ConfigError::Needs { given: "--shards-iroh", needs: "--shards" });
    }
    Ok(())
}

/// Most relays: one near by, and some for when it is down.
pub(super) const RELAYS_MAX: usize = 4;

/// What others are told of a node that listens there: what its operator said; else where it listens; else, where that
/// is every address of this machine, those that it has.
pub(crate) fn addresses(said: &[DialAddress], listens: SocketAddr) -> Addresses {
    let said: Vec<String> = said.iter().cloned().map(String::from).collect();
    Addresses::new(said).unwrap_or_else(|_| match listens.ip().is_unspecified() {
        true => of_this_machine(listens),
        false => listens.into(),
    })
}

/// The addresses by which this machine would go out, with the port of this one; loopback if there is nothing else.
fn of_this_machine(listens: SocketAddr) -> Addresses {
    let port = listens.port();
    let of = |towards: SocketAddr| own_address(towards).map(|ip| SocketAddr::new(ip, port).to_string());
    let four = of((TEST_NET_4, 9).into());
    let six = if listens.is_ipv6() { of((TEST_NET_6, 9).into()) } else { None };
    let found = four.into_iter().chain(six).collect();
    Addresses::new(found).unwrap_or_else(|_| {
        let loopback: IpAddr = match listens.is_ipv6() {
            true => Ipv6Addr::LOCALHOST.into(),
            false => Ipv4Addr::LOCALHOST.into(),
        };
        SocketAddr::new(loopback, port).into()
    })
}

/// The address that the system would send from. Nothing is sent: a socket of datagrams is only told whither.
fn own_address(towards: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if towards.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(towards).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified() && !own.is_loopback()).then_some(own)
}

/// Addresses of nobody (RFC 5737, RFC 3849), towards which a system goes as towards anybody.
const TEST_NET_4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TEST_NET_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_dial_has_a_host_and_a_port() {
        for good in ["studio.example:7070", "10.0.0.2:1", "[2001:db8::1]:65535"] {
            assert_eq!(good.parse::<DialAddress>().unwrap().to_string(), good);
        }
        let long = format!("{}:7070", "x".repeat(260));
        for bad in [
            "",
            "studio",
            ":7070",
            "studio:",
            "studio:0",
            "studio:99999",
            "2001:db8::1:7070",
            "[x]:1",
            "ws://h:1",
            &long,
        ] {
            assert_eq!(bad.parse::<DialAddress>(), Err(DialAddressError), "{bad:?}");
        }
    }

    #[test]
    fn a_relay_is_a_url_with_a_host() {
        for good in ["https://relay.example", "http://10.0.0.2:3340/", "https://[2001:db8::1]/relay"] {
            assert_eq!(good.parse::<RelayUrl>().unwrap().to_string(), good);
        }
        let long = format!("https://{}", "x".repeat(260));
        for bad in ["", "relay.example", "ftp://relay.example", "https://", "/x", "https://user@host", &long]
        {
            assert_eq!(bad.parse::<RelayUrl>(), Err(RelayUrlError), "{bad:?}");
        }
    }

    #[test]
    fn what_others_are_let_in_by_belongs_together() {
        let listen: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let relay: RelayUrl = "https://relay.example".parse().unwrap();
        let check_of = |shards: Option<SocketAddr>, iroh: Option<SocketAddr>, relays: usize| {
            let relays = vec![relay.clone(); relays];
            check(&ProviderConfig {
                shards,
                shards_iroh: iroh,
                shards_relays: relays,
                ..ProviderConfig::new("/x")
            })
        };
        assert_eq!(check_of(Some(listen), None, 0), Ok(()));
        let needs = |given, needs| Err(ConfigError::Needs { given, needs });
        assert_eq!(check_of(Some(listen), None, 1), needs("--shards-relay", "--shards-iroh"));
        assert_eq!(check_of(Some(listen), Some(listen), 5), Err(ConfigError::TooManyRelays { given: 5 }));
        if cfg!(feature = "iroh") {
            assert_eq!(check_of(Some(listen), Some(listen), 4), Ok(()));
            assert_eq!(check_of(None, Some(listen), 0), needs("--shards-iroh", "--shards"));
        } else {
            let refused = check_of(Some(listen), Some(listen), 1).unwrap_err();
            assert!(refused.to_string().contains("--features iroh"), "{refused}");
        }
    }

    #[test]
    fn others_are_told_what_the_operator_said_or_what_can_be_dialled() {
        let told = |said: &[DialAddress], listens: &str| {
            let told = addresses(said, listens.parse().unwrap());
            told.iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let said: Vec<DialAddress> = ["a:1", "b:2"].map(|text| text.parse().unwrap()).into();
        assert_eq!(told(&said, "0.0.0.0:7070"), ["a:1", "b:2"]);
        assert_eq!(told(&[], "127.0.0.1:7070"), ["127.0.0.1:7070"]);
        for listens in ["0.0.0.0:7070", "[::]:7070"] {
            for address in told(&[], listens) {
                let address: SocketAddr = address.parse().unwrap();
                assert!(address.port() == 7070 && !address.ip().is_unspecified(), "{address}");
            }
        }
    }
}
