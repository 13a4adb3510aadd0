//! What stands before the handlers: whose request it is, and how much of us one caller may take.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::http::HeaderMap;
use ram_chain::account::KeyId;
use tokio::sync::Semaphore;

use crate::address::{Proxies, Shares, subscriber};
use crate::config::{Config, GatewayLimits, WebOrigin};
use crate::idempotency::{Answers, Bounds, Owner};
use crate::keys::Caller;
use crate::metrics::Metrics;
use crate::rate::{Left, Rates, TooFast};
use crate::run;
use crate::state::Payer;

use super::body::DISCARDS_MAX;
use super::e2e::Offers;
use super::idempotency::Recorded;
use super::snapshot::Snapshot;

/// One address may have this part of the bytes that all bodies may have.
const BODIES_SHARE: usize = 4;

/// What stands before the handlers.
#[derive(Debug)]
pub struct Front {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    pub(super) limits: GatewayLimits,
    pub(super) proxies: Proxies,
    pub(super) origins: Vec<WebOrigin>,
    pub(super) log_addresses: bool,
    /// Bytes of bodies that are being read.
    pub(super) bodies: Shares,
    /// Bodies that nobody reads and that are poured away.
    pub(super) discards: Arc<Semaphore>,
    pub(super) answers: Mutex<Answers<Recorded>>,
    /// Providers that sealed requests were promised.
    pub(super) offers: Offers,
    pub(super) providers: Snapshot,
    pub(super) e2e_providers: Snapshot,
    pub(super) pipelines: Snapshot,
    pub(super) stats: Snapshot,
    pub(super) models: Snapshot,
    pub(super) network_models: Snapshot,
    pub(super) pricing: Snapshot,
    by_key: Rates<KeyId>,
    by_demo_address: Rates<IpAddr>,
    unknown_keys: Rates<IpAddr>,
    /// Beside the gateway's own, so that no stranger there uses up what the operator has here.
    admin_keys: Rates<IpAddr>,
}

impl Front {
    /// What these settings say.
    #[must_use]
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        let limits = config.gateway;
        let bounds = Bounds {
            kept: limits.idempotency_kept,
            bytes: limits.idempotency_bytes_max,
            keys_per_owner: limits.idempotency_keys_per_caller,
        };
        Self {
            metrics,
            limits,
            proxies: Proxies::new(config.trusted_proxies.clone(), config.proxy_header),
            origins: config.cors_origins.clone(),
            log_addresses: config.log_addresses,
            bodies: Shares::new(limits.bodies_bytes_max, limits.bodies_bytes_max / BODIES_SHARE),
            discards: Arc::new(Semaphore::new(DISCARDS_MAX)),
            answers: Mutex::new(Answers::new(bounds)),
            offers: Offers::default(),
            providers: Snapshot::of_many(),
            e2e_providers: Snapshot::of_many(),
            pipelines: Snapshot::default(),
            stats: Snapshot::default(),
            models: Snapshot::default(),
            network_models: Snapshot::default(),
            pricing: Snapshot::default(),
            by_key: Rates::new(limits.key_requests_per_minute),
            by_demo_address: Rates::new(limits.demo_requests_per_minute),
            unknown_keys: Rates::new(limits.unknown_keys_per_minute),
            admin_keys: Rates::new(limits.unknown_keys_per_minute),
        }
    }

    /// The client behind a peer.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let lines = headers.get_all(self.proxies.header().name());
        // A line that is not text is no hop: it ends the walk like any other that does not read.
        let lines: Vec<&str> = lines.iter().map(|line| line.to_str().unwrap_or("")).collect();
        self.proxies.client(peer, lines.into_iter())
    }

    /// Counts a chat request; `None` where the caller has no limit.
    pub(super) fn count(&self, caller: &Caller, address: IpAddr) -> Option<Result<Left, TooFast>> {
        let now = run::now();
        match caller {
            Caller::Key(id) => self.by_key.take(id.clone(), now),
            Caller::Demo => self.by_demo_address.take(subscriber(address), now),
        }
    }

    /// Whether this address may try another key that may be nobody's.
    pub(super) fn may_guess(&self, address: IpAddr) -> bool {
        self.unknown_keys.has_one(&subscriber(address), run::now())
    }

    /// This address has tried a key that is nobody's.
    pub(super) fn guessed(&self, address: IpAddr) {
        let _ = self.unknown_keys.take(subscriber(address), run::now()); // it was refused anyway
    }

    /// Whether this address may try another key as the administrator's.
    pub(super) fn may_guess_admin(&self, address: IpAddr) -> bool {
        self.admin_keys.has_one(&subscriber(address), run::now())
    }

    /// This address has tried a key that is not the administrator's.
    pub(super) fn guessed_admin(&self, address: IpAddr) {
        let _ = self.admin_keys.take(subscriber(address), run::now()); // it was refused anyway
    }
}

impl Payer {
    /// Whose money a caller's jobs take.
    pub(super) fn of(caller: Caller, address: IpAddr) -> Self {
        match caller {
            Caller::Demo => Self::Demo(address),
            Caller::Key(id) => Self::Key(id.as_str().to_owned()),
        }
    }
}

impl Owner {
    /// Whose idempotency keys they are.
    pub(super) fn of(caller: &Caller, address: IpAddr) -> Self {
        match caller {
            Caller::Key(id) => Self::Key(id.clone()),
            Caller::Demo => Self::Demo(subscriber(address)),
        }
    }
}
