//! Keys of a RAM Aggregator node, what they sign, and what is sealed to them. A leaf: bytes in, bytes out, so that it
//! can be audited alone.
//!
//! A bare wallet address proves nothing, so a node is its Ed25519 key. When it connects, the coordinator sends a
//! nonce, and the node signs a [`statement`](statement::Statement) that binds that nonce, the network and the
//! coordinator to its node key, its end-to-end key, its name and the wallet that it wants to be paid to:
//!
//! ```text
//! coordinator                                  node
//!                     ──────── nonce ────────▶
//!                    ◀── statement, signature ── NodeIdentity::sign_statement
//!   Statement::verify
//! ```
//!
//! The statement outlives the handshake: any client can check [its signature](statement::Statement::verify_signature)
//! and so knows that the key it encrypts to belongs to the node that it chose.
//!
//! | module | owns |
//! |---|---|
//! | [`identity`] | the two secrets of a node, and the files that they live in |
//! | [`statement`] | what a node says of itself under its signature, byte for byte |
//! | `hpke` | prompts that one node alone can open, answers that one client alone can: version 2, streamed |
//! | `envelope` | the same in version 1, for clients that were written for it |
//! | `exchange` | the client's steps, in an order that the compiler holds it to |
//! | `seal` | what both versions share: errors and limits |
//!
//! # Features
//!
//! | feature | what |
//! |---|---|
//! | `identity` (default) | `identity`, `statement` |
//! | `seal` | the rest; whoever relays what is sealed builds without it, and so cannot open it |
//!
//! # What is deliberately absent
//!
//! Logging, serialisation of secrets, wallets, clocks. Secrets are wiped from memory when dropped, and no `Debug`,
//! `Display` or error shows one.

#![forbid(unsafe_code)]

#[cfg(feature = "seal")]
pub mod envelope;
#[cfg(feature = "seal")]
pub mod exchange;
#[cfg(feature = "seal")]
pub mod hpke;
#[cfg(feature = "identity")]
pub mod identity;
#[cfg(feature = "identity")]
mod keys;
#[cfg(feature = "seal")]
pub mod seal;
#[cfg(feature = "identity")]
pub mod statement;
