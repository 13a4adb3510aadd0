//! Whose request it is, by address: through trusted proxies, and one subscriber at a time.
//!
//! Anybody can write `x-forwarded-for`. It is believed only from a peer on the operator's list, and then only as far
//! as that list goes: from the right, past every trusted hop, to the first address that nobody vouches for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Hops that are followed: more proxies than that stand in no row.
const HOPS_MAX: usize = 16;

/// The header in which proxies say whom they speak for. Only one is read: a proxy that writes one passes the other on
/// as the client wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyHeader {
    /// `x-forwarded-for: client, proxy`, as nearly all proxies write it.
    #[default]
    XForwardedFor,
    /// `forwarded: for=client, for=proxy` (RFC 7239).
    Forwarded,
}

/// The proxies that an operator trusts.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    trusted: Vec<IpNet>,
    header: ProxyHeader,
}

impl ProxyHeader {
    /// The header's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

impl Proxies {
    /// These, who write this header.
    #[must_use]
    pub const fn new(trusted: Vec<IpNet>, header: ProxyHeader) -> Self {
        Self { trusted, header }
    }

    /// The header that they write.
    #[must_use]
    pub const fn header(&self) -> ProxyHeader {
        self.header
    }

    /// Whether this address is one of theirs.
    #[must_use]
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|net| net.contains(&address))
    }

    /// The client behind `peer`, told by all lines of the header in their order.
    ///
    /// A hop that does not read ends the walk: then the last trusted proxy itself counts as the client.
    #[must_use]
    pub fn client<'a>(&self, peer: IpAddr, lines: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer.to_canonical();
        let mut hops = lines.rev().flat_map(|line| Hops { rest: Some(line) }).take(HOPS_MAX);
        while self.trust(client) {
            let said = hops.next().and_then(|hop| match self.header {
                ProxyHeader::XForwardedFor => address(hop),
                ProxyHeader::Forwarded => forwarded_for(hop),
            });
            match said {
                Some(said) => client = said.to_canonical(),
                None => break,
            }
        }
        client
    }
}

/// The elements of a header's line, from the right: a comma within quotes does not part them.
///
/// From the right, because that end was written by whom we trust; an open quote further left, by a client, takes
/// nothing with it.
struct Hops<'a> {
    rest: Option<&'a str>,
}

impl<'a> Iterator for Hops<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest?;
        let mut within = false;
        let comma = rest.bytes().enumerate().rev().find_map(|(index, byte)| {
            within ^= byte == b'"';
            (byte == b',' && !within).then_some(index)
        });
        let hop = match comma {
            Some(comma) => {
                self.rest = Some(&rest[..comma]);
                &rest[comma + 1..]
            }
            None => {
                self.rest = None;
                rest
            }
        };
        Some(hop.trim())
    }
}

/// The address in `1.2.3.4`, `1.2.3.4:567`, `::1`, `[::1]` or `[::1]:567`.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some(socket.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse().map(IpAddr::V6).ok()
}

/// The address in an element of `forwarded`, such as `proto=https;for="[::1]:567"`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut values = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value.trim())
    });
    let value = values.next()?;
    if values.next().is_some() {
        return None; // two are a trick
    }
    address(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// The address that one subscriber cannot change at will: an IPv4 address, or a /64 of IPv6.
#[must_use]
pub fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Something of which there is so much in all, and of which each subscriber has a share.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    taken: Arc<Mutex<Taken>>,
    in_all: usize,
    each: usize,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by: HashMap<IpAddr, usize>,
}

/// What somebody has taken; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    of: Shares,
    subscriber: IpAddr,
    amount: usize,
}

impl Shares {
    pub(crate) fn new(in_all: usize, each: usize) -> Self {
        Self { taken: Arc::default(), in_all, each }
    }

    /// A share of nothing yet, for whoever is at `address`.
    pub(crate) fn none(&self, address: IpAddr) -> Share {
        Share { of: self.clone(), subscriber: subscriber(address), amount: 0 }
    }
}

impl Share {
    /// Takes more, or nothing when that is not there.
    #[must_use]
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let by = taken.by.get(&self.subscriber).copied().unwrap_or(0).saturating_add(more);
        let in_all = taken.in_all.saturating_add(more);
        if by > self.of.each || in_all > self.of.in_all {
            return false;
        }
        taken.in_all = in_all;
        taken.by.insert(self.subscriber, by);
        self.amount += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= self.amount;
        if let Some(by) = taken.by.get_mut(&self.subscriber) {
            *by -= self.amount;
            if *by == 0 {
                taken.by.remove(&self.subscriber);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies(header: ProxyHeader) -> Proxies {
        Proxies::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], header)
    }

    fn check(header: ProxyHeader, peer: &str, lines: &[&str], client: &str) {
        let told = proxies(header).client(peer.parse().unwrap(), lines.iter().copied());
        assert_eq!(told, client.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
    }

    #[test]
    fn only_a_trusted_peer_is_believed() {
        let check = |peer, lines: &[&str], client| check(ProxyHeader::XForwardedFor, peer, lines, client);
        check("192.0.2.1", &["198.51.100.7"], "192.0.2.1");
        check("10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("::ffff:10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.7:443"], "198.51.100.7");
        check("fd00::1", &["[2001:db8::9]:443"], "2001:db8::9");
        check("fd00::1", &["2001:db8::9"], "2001:db8::9");
    }

    #[test]
    fn the_rightmost_hop_that_nobody_vouches_for_is_the_client() {
        let check = |peer, lines: &[&str], client| check(ProxyHeader::XForwardedFor, peer, lines, client);
        check("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.0.0.2"], "198.51.100.7");
        check("10.0.0.1", &["1.1.1.1", "198.51.100.7", "10.0.0.2"], "198.51.100.7");
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1");
        check("10.0.0.1", &["1.1.1.1, , 10.0.0.2"], "10.0.0.2");
    }

    #[test]
    fn the_standard_header_reads_with_quotes_and_other_pairs() {
        let check = |peer, lines: &[&str], client| check(ProxyHeader::Forwarded, peer, lines, client);
        check("10.0.0.1", &["for=198.51.100.7;proto=https"], "198.51.100.7");
        check("10.0.0.1", &[r#"proto=http;For="[2001:db8::9]:4711""#], "2001:db8::9");
        check("10.0.0.1", &[r#"for=1.1.1.1, for=198.51.100.7;host="a,b", for=10.0.0.2"#], "198.51.100.7");
        check("10.0.0.1", &["for=_hidden"], "10.0.0.1");
        check("10.0.0.1", &["for=1.1.1.1;for=2.2.2.2"], "10.0.0.1");
        check("10.0.0.1", &[r#"for="1.1.1.1, for=198.51.100.7"#], "198.51.100.7");
    }

    proptest! {
        /// Whatever a client writes, the address that its proxy saw is the one that counts.
        #[test]
        fn no_client_can_pass_for_another(
            written in "[ -~]{0,60}",
            lines in 0..3_usize,
            seen in any::<[u8; 4]>().prop_filter("a stranger's", |bytes| bytes[0] != 10),
        ) {
            let seen = IpAddr::from(seen);
            for (header, hop) in [
                (ProxyHeader::XForwardedFor, seen.to_string()),
                (ProxyHeader::Forwarded, format!("for={seen};proto=https")),
            ] {
                let peer = "10.0.0.1".parse().unwrap();
                let appended = format!("{written}, {hop}");
                let mut all: Vec<&str> = vec![written.as_str(); lines];
                all.push(&appended);
                prop_assert_eq!(proxies(header).client(peer, all.iter().copied()), seen);
                all.pop();
                all.push(&hop);
                prop_assert_eq!(proxies(header).client(peer, all.iter().copied()), seen);
            }
        }

        #[test]
        fn a_stranger_is_always_itself(peer: std::net::Ipv4Addr, written in "[ -~]{0,60}") {
            prop_assume!(peer.octets()[0] != 10);
            for header in [ProxyHeader::XForwardedFor, ProxyHeader::Forwarded] {
                let client = proxies(header).client(peer.into(), std::iter::once(written.as_str()));
                prop_assert_eq!(client, IpAddr::from(peer));
            }
        }

        #[test]
        fn what_is_taken_is_given_back(amounts in prop::collection::vec((0..4_u8, 0..50_usize), 0..40)) {
            let shares = Shares::new(200, 100);
            let mut held = Vec::new();
            for (from, amount) in amounts {
                let mut share = shares.none(IpAddr::from([192, 0, 2, from]));
                if share.grow(amount) { held.push(share) }
                let sum: usize = held.iter().map(|share| share.amount).sum();
                prop_assert!(sum <= 200);
            }
            drop(held);
            let taken = shares.taken.lock().unwrap();
            prop_assert!(taken.in_all == 0 && taken.by.is_empty());
        }
    }

    #[test]
    fn one_subscriber_has_one_share_however_it_writes_itself() {
        let shares = Shares::new(100, 2);
        let mut first = shares.none("2001:db8::1".parse().unwrap());
        let mut second = shares.none("2001:db8::2".parse().unwrap());
        let mut other = shares.none("2001:db8:0:1::1".parse().unwrap());
        assert!(first.grow(1) && second.grow(1) && !second.grow(1) && other.grow(2));
        drop(first);
        assert!(second.grow(1));
    }
}
