//! Words and pure rules of RAM Aggregator: no I/O, no clock, no randomness.
//!
//! | module | answers |
//! |---|---|
//! | [`id`] | who and which: jobs, nodes, providers, models, wallets |
//! | [`units`] | how much: tokens, bytes, xRAM, shares, instants |
//! | [`layers`] | which run of a model's layers |
//! | [`checkpoint`] | what a tensor is for, by its name |
//! | [`catalog`] | what a model is: shape, size, price class |
//! | [`chat`] | what was said, and how a model wants to read it |
//! | [`mod@format`] | what an answer must look like |
//! | [`job`] | what is asked for, and how it ended |
//! | [`provider`] | what a node says of itself |
//! | [`memory`] | does it fit, and if not, why |
//! | [`route`] | who serves it, and why not the others |
//! | [`validate`] | is a result what it says it is |
//! | [`reputation`] | how far is a node trusted |

pub mod catalog;
pub mod chat;
pub mod checkpoint;
pub mod format;
pub mod id;
pub mod job;
pub mod layers;
pub mod memory;
#[cfg(feature = "openapi")]
mod openapi;
pub mod provider;
pub mod reputation;
pub mod route;
pub mod units;
pub mod validate;
