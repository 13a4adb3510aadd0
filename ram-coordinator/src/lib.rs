//! The coordinator of a RAM Aggregator network: OpenAI gateway, provider registry, dispatcher, ledger.
//!
//! | module | owns |
//! |---|---|
//! | [`state`] | every decision: who serves a job, what it costs, when it is given up; pure |
//! | [`run`] | the one loop between the core and its shells; the clock |
//! | [`http`] | the gateway: OpenAI's API, probes, what the network shows of itself |
//! | [`ws`] | providers' sockets |
//! | [`store`] | money, keys and jobs, kept; SQLite built in |
//! | [`keys`] | who calls |
//! | [`admin`] | the administrator's key |
//! | [`metrics`] | what is counted |
//! | [`config`] | what an operator decides |
//! | [`cli`] | the same from a command line |
//! | [`address`] | whose request it is, through trusted proxies |
//! | [`serve`] | all of it put together: [`serve::start`] |
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use ram_coordinator::config::{Config, Database};
//!
//! let listen = ([127, 0, 0, 1], 0).into(); // any free port
//! let config = Config { listen, database: Database::Memory, ..Config::default() };
//! let coordinator = ram_coordinator::start(config).await.unwrap();
//! println!("{}/v1 with the key {}", coordinator.base_url(), ram_coordinator::keys::DEMO_KEY);
//! coordinator.shutdown().await;
//! # });
//! ```

#![forbid(unsafe_code)]

pub mod address;
pub mod admin;
pub mod cli;
pub mod config;
pub mod http;
mod idempotency;
pub mod keys;
pub mod metrics;
mod rate;
pub mod run;
pub mod serve;
mod socket;
pub mod state;
pub mod store;
pub mod ws;

pub use serve::{Running, StartError, Stopped, start};
