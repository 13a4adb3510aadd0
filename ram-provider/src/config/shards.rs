//! Where others dial this node to hold a model with it: as its operator says, or else as this machine sees itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use ram_proto::control::shard::Addresses;
use serde::{Deserialize, Serialize};

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
