//! Whoever accepts connections: a place for each, a bound for each address, and an end when it is time to close.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tracing::warn;

use crate::address::{Proxies, Share, Shares};
use crate::config::GatewayLimits;
use crate::http::{Peer, Place};
use crate::metrics::Metrics;
use crate::socket::Watched;

/// How long to wait after the operating system refused a connection: it is out of file handles.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What a listener needs to know.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) router: Router,
    pub(super) limits: GatewayLimits,
    pub(super) proxies: Proxies,
    pub(super) metrics: Arc<Metrics>,
}

impl Door {
    /// Accepts connections until `closing`, then waits for the open ones.
    pub(super) async fn open(self, listener: TcpListener, mut closing: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(self.limits.connections_max.min(Semaphore::MAX_PERMITS)));
        let by_address = Shares::new(usize::MAX, self.limits.connections_per_address_max);
        loop {
            let accepted = tokio::select! {
                accepted = async {
                    let place = Arc::clone(&places).acquire_owned().await;
                    (place, listener.accept().await)
                } => accepted,
                _ = closing.wait_for(|closing| *closing) => break,
            };
            match accepted {
                (Ok(place), Ok((stream, peer))) => {
                    let Some(share) = self.share(&by_address, peer.ip()) else {
                        self.metrics.limited("connections_per_address");
                        continue; // closed by being dropped
                    };
                    // The place goes with each request, so that a socket that a request becomes keeps it.
                    let place = Place::new(place, share, Arc::clone(&self.metrics));
                    tokio::spawn(self.clone().serve(stream, peer, place, closing.clone()));
                }
                (Ok(_), Err(error)) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                }
                (Err(_), _) => break, // the semaphore is never closed
            }
        }
        drop(listener);
        let everyone = u32::try_from(self.limits.connections_max).unwrap_or(u32::MAX);
        let _ = places.acquire_many(everyone).await; // whoever called gives up on us after a while
    }

    /// This address's share of all connections. This machine and trusted proxies speak for many and have no bound.
    fn share(&self, shares: &Shares, peer: IpAddr) -> Option<Share> {
        let mut share = shares.none(peer);
        let speaks_for_many = peer.to_canonical().is_loopback() || self.proxies.trust(peer);
        (speaks_for_many || share.grow(1)).then_some(share)
    }

    /// Serves one connection to its end.
    async fn serve(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        place: Place,
        mut closing: watch::Receiver<bool>,
    ) {
        if stream.set_nodelay(true).is_err() {
            return; // already gone; and with Nagle's delay each token would wait 40 ms
        }
        let Self { router, limits, metrics, .. } = self;
        let stream = Watched::new(stream, limits.write_stall, metrics);
        // Laid into each request rather than around the router, which would be copied for each connection.
        let service = TowerToHyperService::new(router);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(place.clone());
            request.extensions_mut().insert(Peer(peer));
            service.call(request)
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_within)
            .max_headers(limits.headers_max)
            .max_buf_size(limits.head_bytes_max);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return, // how it ended is the peer's affair
            _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_unless_it_speaks_for_many() {
        let proxies =
            Proxies::new(vec!["10.0.0.0/8".parse().unwrap()], crate::address::ProxyHeader::default());
        let (limits, metrics) = (GatewayLimits::default(), Arc::default());
        let door = Door { router: Router::new(), limits, proxies, metrics };
        let shares = Shares::new(usize::MAX, 2);
        let take = |address: &str| door.share(&shares, address.parse().unwrap());
        let held = [take("192.0.2.1"), take("192.0.2.1")];
        assert!(held.iter().all(Option::is_some) && take("192.0.2.1").is_none());
        assert!(take("192.0.2.2").is_some());
        drop(held);
        assert!(take("192.0.2.1").is_some());
        let many: Vec<_> = (0..9).flat_map(|_| [take("127.0.0.1"), take("::1"), take("10.1.2.3")]).collect();
        assert!(many.iter().all(Option::is_some));
    }
}
