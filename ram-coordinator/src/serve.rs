//! A coordinator, put together: the store, the loop, the gateway, the operator's paths, and whoever accepts
//! connections.
//!
//! [`start`] is all that the binary, the example network and the tests call.

mod accept;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::address::Proxies;
use crate::admin::{AdminKey, AdminKeyError};
use crate::config::{AdminListen, Config, ConfigError, Database, GatewayLimits, Layered};
use crate::http::admin::{self, Admin};
use crate::http::{self, Front, Gateway};
use crate::keys::{KeyError, Keys};
use crate::metrics::Metrics;
use crate::run::{self, Handle};
use crate::state::Coordinator;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};

use accept::Door;

/// How long connections may take to close after the jobs have ended.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Connections to the operator's paths at once.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// A coordinator that runs; it stops when [`Running::shutdown`] is called, or with its runtime.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where the operator's paths are, and the key that opens them, if they are anywhere.
    pub admin: Option<(SocketAddr, AdminKey)>,
    /// The loop.
    pub handle: Handle,
    /// Money and keys.
    pub store: Arc<dyn Store>,
    /// Keys, to make some.
    pub keys: Arc<Keys>,
    drain_within: Duration,
    closing: watch::Sender<bool>,
    turning: JoinHandle<()>,
    accepting: Vec<JoinHandle<()>>,
}

/// How a coordinator stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every job had ended.
    Drained,
    /// Jobs were given up; their holds end with their leases.
    CutShort,
}

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings are at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store does not open.
    #[error("the store does not open")]
    Store(#[from] StoreError),
    /// The address cannot be taken.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// There is no administrator's key.
    #[error(transparent)]
    AdminKey(#[from] AdminKeyError),
    /// The operator's paths would be open to more than this machine, with a key that nobody knows.
    #[error(
        "the operator's paths at {addr} need a key that the operator knows: give one in \
         RAM_COORDINATOR_ADMIN_KEY, or keep the database in a file"
    )]
    AdminWithoutKey {
        /// The address.
        addr: SocketAddr,
    },
}

/// Opens the store that the settings name.
///
/// # Errors
/// The store's, when its file cannot be made, read or brought up to date.
pub fn open_store(database: &Database) -> Result<SqliteStore, StoreError> {
    match database {
        Database::Memory => SqliteStore::in_memory(),
        Database::File(path) => SqliteStore::open(Path::new(path)),
    }
}

/// Starts a coordinator on the current tokio runtime.
///
/// Holds that an earlier process left behind, and whose leases have ended, are resolved before the first request is
/// taken.
///
/// # Errors
/// [`StartError`], which names what the operator must mend.
pub async fn start(config: Config) -> Result<Running, StartError> {
    start_layered(Layered { config, sources: BTreeMap::new() }).await
}

/// As [`start`], with settings that know where each came from.
///
/// # Errors
/// As [`start`].
pub async fn start_layered(settings: Layered) -> Result<Running, StartError> {
    let config = &settings.config;
    let state = config.state()?;
    let admin_key = admin_key(config)?;
    let store: Arc<dyn Store> = Arc::new(open_store(&config.database)?);
    resolve_leftovers(&*store).await?;
    let (listener, addr) = bind(config.listen).await?;
    let keys = Arc::new(Keys::new(Arc::clone(&store), config.demo_key));
    let metrics = Arc::<Metrics>::default();
    let (handle, turning) = run::spawn(Coordinator::new(state), Arc::clone(&store), Arc::clone(&metrics));
    let gateway = Gateway {
        handle: handle.clone(),
        keys: Arc::clone(&keys),
        store: Arc::clone(&store),
        front: Arc::new(Front::new(config, Arc::clone(&metrics))),
    };
    let (closing, is_closing) = watch::channel(false);
    let proxies = Proxies::new(config.trusted_proxies.clone(), config.proxy_header);
    let (limits, drain_within) = (config.gateway, config.gateway.drain_within);
    let door = Door { router: http::router(gateway.clone()), limits, proxies, metrics: Arc::clone(&metrics) };
    let mut accepting = vec![tokio::spawn(door.open(listener, is_closing.clone()))];
    info!(%addr, name = config.name, database = %config.database, "the coordinator is up");
    let mut admin = None;
    if let Some((at, key)) = admin_key {
        let (listener, addr) = bind(at).await?;
        let open_metrics = addr.ip().is_loopback();
        let paths = Admin { gateway, settings: Arc::new(settings), key: key.clone(), open_metrics };
        let limits = GatewayLimits { connections_max: ADMIN_CONNECTIONS_MAX, ..limits };
        let door = Door { router: admin::router(paths), limits, proxies: Proxies::default(), metrics };
        accepting.push(tokio::spawn(door.open(listener, is_closing)));
        info!(admin = %addr, key = key.id(), "the operator's paths are up");
        admin = Some((addr, key));
    }
    Ok(Running { addr, admin, handle, store, keys, drain_within, closing, turning, accepting })
}

async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let unbound = |source| StartError::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(unbound)?;
    let addr = listener.local_addr().map_err(unbound)?;
    Ok((listener, addr))
}

async fn resolve_leftovers(store: &dyn Store) -> Result<(), StoreError> {
    loop {
        let holds = store.resolve_expired(run::now()).await?;
        if holds == 0 {
            return Ok(());
        }
        info!(holds, "resolved holds that an earlier process left behind");
    }
}

/// Where the operator's paths shall be, and the key that opens them: from the environment, from its file, or, where
/// nothing is kept and nobody else can come, made up for this one process.
fn admin_key(config: &Config) -> Result<Option<(SocketAddr, AdminKey)>, StartError> {
    let AdminListen::At(addr) = config.admin_listen else { return Ok(None) };
    if let Some(key) = &config.admin_key {
        return Ok(Some((addr, key.clone())));
    }
    match config.admin_key_path() {
        Some(path) => Ok(Some((addr, AdminKey::at(&path)?))),
        None if addr.ip().is_loopback() => {
            Ok(Some((addr, AdminKey::random().map_err(|error: KeyError| AdminKeyError::from(error))?)))
        }
        None => Err(StartError::AdminWithoutKey { addr }),
    }
}

impl Running {
    /// Where its paths begin.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Takes no new jobs, lets those that run end for half a minute, then closes everything.
    pub async fn shutdown(self) -> Stopped {
        self.shutdown_unless(std::future::pending()).await
    }

    /// As [`Running::shutdown`], but gives up what still runs as soon as `hurry` is over.
    pub async fn shutdown_unless(self, hurry: impl Future<Output = ()>) -> Stopped {
        let _ = self.handle.begin_drain().await; // a loop that stopped has drained
        self.handle.dismiss().await;
        let stopped = tokio::select! {
            drained = tokio::time::timeout(self.drain_within, self.handle.drain()) => match drained {
                Ok(()) => Stopped::Drained,
                Err(_) => Stopped::CutShort,
            },
            () = hurry => Stopped::CutShort,
        };
        if stopped == Stopped::CutShort {
            warn!("jobs still run; they are given up and their holds end with their leases");
        }
        self.closing.send_replace(true);
        self.handle.stop().await;
        // A task that panicked has stopped, too.
        let _ = self.turning.await;
        // The store works in order: once this is answered all that was ordered before is on the disk.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.store.ping()).await;
        if stopped == Stopped::Drained {
            // Answers that were given still have to leave.
            let _ = tokio::time::timeout(CLOSE_WITHIN, futures::future::join_all(self.accepting)).await;
        }
        info!("the coordinator has stopped");
        stopped
    }
}
