//! A node that serves models to a RAM Aggregator network, and an OpenAI server for this machine alone.
//!
//! | module | owns |
//! |---|---|
//! | [`agent`] | what the node says and does, decided without a socket, a clock or a thread |
//! | [`link`] | the socket to the coordinator |
//! | [`worker`] | the models, in memory or a load away, and the answers that they write |
//! | [`shards`] | the door to the shards that this node holds for groups, and the links to others' |
//! | `groups` | what it holds: layers found or fetched, loaded, linked, let go, as the coordinator orders |
//! | [`stage`] | a run of a model's layers, as a stage of a pipeline |
//! | [`local`] | OpenAI's API on this machine, without a network |
//! | [`config`] | what an operator can set, and where it comes from |
//! | [`hardware`], [`power`] | what machine this is, and what keeps it awake |
//! | [`hub`] | models fetched from a Hugging Face-style hub |
//! | [`status`] | what a running node tells of itself |
//! | [`doctor`] | what is right, what is wrong, and what to do about it |
//! | [`cli`], [`signals`] | the binary's command line and its end |
//!
//! [`run`] serves a network and [`serve_local`] serves this machine; both take the caller's tokio runtime and a future
//! that says when to stop:
//!
//! ```no_run
//! # async fn example() -> Result<(), ram_provider::ProviderError> {
//! use ram_provider::config::ProviderConfig;
//!
//! let mut config = ProviderConfig::new("/var/lib/ram-provider");
//! config.coordinator = "wss://ram.example".parse().expect("a coordinator's URL");
//! ram_provider::run(config, async { tokio::signal::ctrl_c().await.unwrap_or(()) }).await
//! # }
//! ```
//!
//! The way of a job: socket → [`link`] → [`agent::Agent`] → `Generate` → [`worker::Worker`] → engine, and its tokens
//! come back worker → agent → link → socket.

pub mod agent;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod hardware;
pub mod hub;
pub mod link;
pub mod local;
pub mod power;
pub mod shards;
pub mod signals;
pub mod stage;
pub mod status;
pub mod worker;

mod error;
mod groups;
mod inventory;
mod lock;
mod models;
mod plain;
mod reading;
mod run;
mod sealed;
mod speed;

pub use error::ProviderError;
pub use local::serve_local;
pub use run::run;
